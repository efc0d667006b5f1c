"""selected_attention: attention of one query per sequence over the units of the cache chosen for it."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["selected_attention"]


def selected_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    indices: Tensor,
    unit: int,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    active: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend B queries, one of each sequence, to the tokens of the units that their heads chose.

    query `[B, Hq, Dk]`, any strides; key_cache `[num_pages, page_size, Hkv, Dk]` and value_cache
    `[num_pages, page_size, Hkv, Dv]`, any strides (value_cache may be a view of key_cache), all of one
    floating dtype; plan: B sequences of one new token each. Query head h reads KV head h // (Hq // Hkv).

    indices `[B, Hs, M]` int32 names units of `unit` tokens of the sequence, unit 0 its first: ascending,
    distinct, padded with -1 at the end. `unit` divides the page size: 1 for tokens, page_size for pages.
    Hs = 1 list serves all heads, Hs = Hkv lists one group of query heads each, Hs = Hq lists one query head
    each. Tokens of a chosen unit beyond the sequence's end are not read.

    `softcap` replaces a scaled score s by tanh(s / softcap) * softcap; `sinks` `[Hq]` adds one logit per head
    to the softmax denominator, without a value. `active` `[B]` bool: where it is False, `out` and `lse` stay
    as given, and both must be.

    Returns out `[B, Hq, Dv]` in the query's dtype and lse `[B, Hq]` fp32, natural log, sinks included (`out`
    and `lse` themselves when given). An empty list gives out 0 and lse -inf (or the sink).

    Raises ValueError when an argument does not fit the others and, on a CPU, when a list names a unit that
    the sequence does not have. A GPU does not look: the caller guarantees the range, and the host waits for
    nothing.
    """
    _check(query, key_cache, value_cache, plan, indices, unit, softcap, sinks)
    _check_results(query, value_cache.shape[3], active, out, lse)
    run = _implementation(dispatch.version(query))
    return run(
        query, key_cache, value_cache, plan, indices, unit, scale, softcap, sinks, active, out, lse
    )  # fmt: skip


@cache
def _implementation(version: dispatch.Version) -> Callable[..., tuple[Tensor, Tensor]]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").selected_attention  # type: ignore[no-any-return]


def _check(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int,
    softcap: float | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    checks.caches(key_cache, value_cache)
    checks.listed_units(query, key_cache, plan, indices, unit, per_query_head=True)
    checks.floating_dtype(query, key_cache=key_cache, value_cache=value_cache)
    checks.one_device(query, key_cache=key_cache, value_cache=value_cache, plan=plan, indices=indices)
    checks.softcap_positive(softcap)
    checks.sink_logits(sinks, query)


def _check_results(
    query: Tensor, value_dim: int, active: Tensor | None, out: Tensor | None, lse: Tensor | None
) -> None:
    batch, num_heads, _ = query.shape
    checks.active_rows(active, query)
    if active is not None and (out is None or lse is None):
        raise ValueError("active needs out and lse: its False rows keep what they hold")
    checks.result("out", out, (batch, num_heads, value_dim), query.dtype, query.device)
    checks.result("lse", lse, (batch, num_heads), torch.float32, query.device)
