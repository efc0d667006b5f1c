"""paged_attention: causal attention of a batch of chunks and decodes over a paged KV cache."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan, plan

__all__ = ["AttentionPlan", "paged_attention", "plan"]


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend T query tokens to the keys that their sequences hold, those just stored included.

    query `[T, Hq, Dk]`, any strides; key_cache `[num_pages, page_size, Hkv, Dk]` and value_cache
    `[num_pages, page_size, Hkv, Dv]`, any strides (value_cache may be a view of key_cache), all of one
    floating dtype. Query head h reads KV head h // (Hq // Hkv). Returns out `[T, Hq, Dv]` in the query's
    dtype (`out` itself when given) and lse `[T, Hq]` fp32, natural log.

    Query i of sequence b stands at position p = kv_len - q_len + i and sees the keys j <= p; with `window`,
    those with p - window < j <= p. `softcap` replaces a scaled score s by tanh(s / softcap) * softcap.
    `sinks` `[Hq]` adds one logit per head to the softmax denominator, without a value; lse includes it.

    Raises ValueError when an argument does not fit the others; nothing here makes the host wait for the
    device.
    """
    _check(query, key_cache, value_cache, plan, window, softcap, sinks)
    checks.result("out", out, (*query.shape[:2], value_cache.shape[3]), query.dtype, query.device)
    run = _implementation(dispatch.version(query))
    return run(query, key_cache, value_cache, plan, scale, window, softcap, sinks, out)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., tuple[Tensor, Tensor]]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").paged_attention  # type: ignore[no-any-return]


def _check(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    window: int | None, softcap: float | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    checks.caches(key_cache, value_cache)
    num_kv_heads, key_dim = key_cache.shape[2:]
    checks.query_heads(query, "T", "cache", num_kv_heads, key_dim)
    checks.floating_dtype(query, key_cache=key_cache, value_cache=value_cache)
    checks.one_device(query, key_cache=key_cache, value_cache=value_cache, plan=plan)
    if plan.num_tokens != query.shape[0]:
        raise ValueError(f"query has {query.shape[0]} tokens, plan {plan.num_tokens}")
    checks.plan_pages(plan, key_cache)
    checks.window_positive(window)
    checks.softcap_positive(softcap)
    checks.sink_logits(sinks, query)
