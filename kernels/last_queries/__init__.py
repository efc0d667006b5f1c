"""last_queries: how much a chunk's last queries attend to every key, by column and by diagonal."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["last_queries"]


def last_queries(
    query: Tensor,
    key_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the causal attention probabilities of a sequence's last R queries over columns and diagonals.

    query `[R, Hq, D]`, the last R of the tokens that the plan's one sequence brings, and key_cache
    `[num_pages, page_size, Hkv, D]`, any strides, one floating dtype. Query head h reads KV head
    h // (Hq // Hkv). `softcap` and `sinks` as in `paged_attention`: a sink takes its share and is no column.

    With A `[Hq, R, N]` the exact softmax over the N keys there are, row r at position N - R + r, returns

    - vertical fp32 `[Hq, N]`: at j the sum over r of A[r, j];
    - slash fp32 `[Hq, N]`: at o the sum over r of A[r, N - R + r - o]; 0 is the main diagonal, and only
      offsets up to N - R have a key in every row.

    The probe of MInference (arXiv 2407.02490) and FlexPrefill (arXiv 2502.20766). Raises ValueError when an
    argument does not fit the others; nothing here makes the host wait for a GPU, where A is never stored.
    """
    _check(query, key_cache, plan, softcap, sinks)
    return _implementation(dispatch.version(query))(query, key_cache, plan, scale, softcap, sinks)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., tuple[Tensor, Tensor]]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").last_queries  # type: ignore[no-any-return]


def _check(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, softcap: float | None, sinks: Tensor | None
) -> None:
    checks.caches(key_cache, key_cache)
    checks.query_heads(query, "R", "key_cache", *key_cache.shape[2:])
    checks.floating_dtype(query=query, key_cache=key_cache)
    checks.one_device(query, key_cache=key_cache, plan=plan)
    checks.plan_pages(plan, key_cache)
    checks.softcap_positive(softcap)
    checks.sink_logits(sinks, query)
    if len(plan.host_kv_lens) != 1:
        raise ValueError(f"plan must be of one sequence, not of {len(plan.host_kv_lens)}")
    if not 1 <= query.shape[0] <= plan.num_tokens:
        raise ValueError(f"query must have 1 to {plan.num_tokens} rows, as plan, not {query.shape[0]}")
