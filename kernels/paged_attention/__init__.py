"""paged_attention: causal attention of a batch of chunks and decodes over a paged KV cache."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor

from headway.kernels import dispatch
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
    shape = (*query.shape[:2], value_cache.shape[3])
    if out is not None and (out.shape != shape or out.dtype != query.dtype or out.device != query.device):
        raise ValueError(
            f"out must be {shape} {query.dtype} on {query.device}, not {tuple(out.shape)} {out.dtype}"
        )
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
    shape, key_shape, value_shape = query.shape, key_cache.shape, value_cache.shape
    if len(key_shape) != 4 or len(value_shape) != 4 or key_shape[:3] != value_shape[:3]:
        raise ValueError(
            "key_cache and value_cache must be [num_pages, page_size, num_kv_heads, head_dim] alike, "
            f"not {tuple(key_shape)} and {tuple(value_shape)}"
        )
    num_pages, page_size, num_kv_heads, key_dim = key_shape
    if len(shape) != 3 or shape[2] != key_dim:
        raise ValueError(f"query must be [T, num_heads, {key_dim}], not {tuple(shape)}")
    if shape[1] == 0 or shape[1] % num_kv_heads:
        raise ValueError(f"query has {shape[1]} heads, no multiple of the cache's {num_kv_heads} KV heads")
    dtype, device = query.dtype, query.device
    if not dtype.is_floating_point or not dtype == key_cache.dtype == value_cache.dtype:
        raise ValueError(
            f"query, key_cache and value_cache must share a floating dtype, "
            f"not {dtype}, {key_cache.dtype}, {value_cache.dtype}"
        )
    if not device == key_cache.device == value_cache.device == plan.device:
        raise ValueError(
            f"query is on {device}, key_cache on {key_cache.device}, "
            f"value_cache on {value_cache.device}, plan on {plan.device}"
        )
    if plan.num_tokens != shape[0]:
        raise ValueError(f"query has {shape[0]} tokens, plan {plan.num_tokens}")
    if plan.page_size != page_size or plan.max_page >= num_pages:
        raise ValueError(
            f"plan is for pages of {plan.page_size} tokens up to number {plan.max_page}, "
            f"key_cache has {num_pages} of {page_size}"
        )
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if sinks is not None and (sinks.shape != shape[1:2] or sinks.device != device):
        raise ValueError(f"sinks must be [{shape[1]}] on {device}, not {tuple(sinks.shape)}")
