"""decode_attention: one new token of each sequence is stored, then attends to all that its sequence holds."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["decode_attention"]


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What `store_kv` and then `paged_attention` do where every sequence of a batch has one new token.

    query `[B, Hq, Dk]`, key `[B, Hkv, Dk]` and value `[B, Hkv, Dv]`, any strides; the rest as
    `paged_attention` takes it, with two caches that are no views of each other. Key and value go where `plan`
    has the sequence's last token. Returns out `[B, Hq, Dv]` in the query's dtype.

    Raises ValueError when an argument does not fit the others.
    """
    checks.caches(key_cache, value_cache)
    _, _, num_kv_heads, key_dim = key_cache.shape
    checks.query_heads(query, "B", "cache", num_kv_heads, key_dim)
    batch = query.shape[0]
    checks.one_token_each(plan, batch)
    if key.shape != (batch, num_kv_heads, key_dim):
        raise ValueError(f"key must be {(batch, num_kv_heads, key_dim)}, not {tuple(key.shape)}")
    if value.shape != (batch, num_kv_heads, value_cache.shape[3]):
        wanted = batch, num_kv_heads, value_cache.shape[3]
        raise ValueError(f"value must be {wanted}, not {tuple(value.shape)}")
    checks.floating_dtype(query, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    checks.one_device(query, key=key, value=value, key_cache=key_cache, value_cache=value_cache, plan=plan)
    checks.plan_pages(plan, key_cache)
    checks.window_positive(window)
    checks.softcap_positive(softcap)
    checks.sink_logits(sinks, query)
    run = _implementation(dispatch.version(query))
    return run(query, key, value, key_cache, value_cache, plan, scale, window, softcap, sinks)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """A launch is cheap beside what it reads: a GPU stores and attends in two."""
    module = "cpu" if version == "cpu" else "reference"
    return import_module(f"{__name__}.{module}").decode_attention  # type: ignore[no-any-return]
