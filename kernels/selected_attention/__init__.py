"""selected_attention: attention of one query per sequence over the units of the cache chosen for it."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import dispatch
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
    shape, key_shape, value_shape = query.shape, key_cache.shape, value_cache.shape
    if len(key_shape) != 4 or len(value_shape) != 4 or key_shape[:3] != value_shape[:3]:
        raise ValueError(
            "key_cache and value_cache must be [num_pages, page_size, num_kv_heads, head_dim] alike, "
            f"not {tuple(key_shape)} and {tuple(value_shape)}"
        )
    num_pages, page_size, num_kv_heads, key_dim = key_shape
    if len(shape) != 3 or shape[2] != key_dim or shape[1] == 0 or shape[1] % num_kv_heads:
        raise ValueError(
            f"query must be [B, a multiple of {num_kv_heads} heads, {key_dim}], not {tuple(shape)}"
        )
    batch, num_heads, _ = shape
    dtype, device = query.dtype, query.device
    if not dtype.is_floating_point or not dtype == key_cache.dtype == value_cache.dtype:
        raise ValueError(
            f"query, key_cache and value_cache must share a floating dtype, "
            f"not {dtype}, {key_cache.dtype}, {value_cache.dtype}"
        )
    if not device == key_cache.device == value_cache.device == plan.device == indices.device:
        raise ValueError(
            f"query is on {device}, key_cache on {key_cache.device}, value_cache on {value_cache.device}, "
            f"plan on {plan.device}, indices on {indices.device}"
        )
    if plan.num_tokens != batch or len(plan.host_kv_lens) != batch:
        raise ValueError(
            f"plan must be of {batch} sequences with one new token each, as query, "
            f"not of {len(plan.host_kv_lens)} with {plan.num_tokens}"
        )
    if plan.page_size != page_size or plan.max_page >= num_pages:
        raise ValueError(
            f"plan is for pages of {plan.page_size} tokens up to number {plan.max_page}, "
            f"key_cache has {num_pages} of {page_size}"
        )
    if unit < 1 or page_size % unit:
        raise ValueError(f"unit must divide the page size of {page_size}, not be {unit}")
    chosen = indices.shape
    if (
        indices.dtype != torch.int32
        or len(chosen) != 3
        or chosen[0] != batch
        or chosen[1] not in (1, num_kv_heads, num_heads)
        or chosen[2] == 0
    ):
        raise ValueError(
            f"indices must be int32 [{batch}, 1 or {num_kv_heads} or {num_heads}, at least 1], "
            f"not {indices.dtype} {tuple(chosen)}"
        )
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if sinks is not None and (sinks.shape != shape[1:2] or sinks.device != device):
        raise ValueError(f"sinks must be [{num_heads}] on {device}, not {tuple(sinks.shape)}")


def _check_results(
    query: Tensor, value_dim: int, active: Tensor | None, out: Tensor | None, lse: Tensor | None
) -> None:
    batch, num_heads, _ = query.shape
    device = query.device
    if active is not None:
        if active.shape != (batch,) or active.dtype != torch.bool or active.device != device:
            raise ValueError(
                f"active must be bool [{batch}] on {device}, not {active.dtype} {tuple(active.shape)}"
            )
        if out is None or lse is None:
            raise ValueError("active needs out and lse: its False rows keep what they hold")
    for name, given, shape, dtype in (
        ("out", out, (batch, num_heads, value_dim), query.dtype),
        ("lse", lse, (batch, num_heads), torch.float32),
    ):
        if given is not None and (given.shape != shape or given.dtype != dtype or given.device != device):
            raise ValueError(
                f"{name} must be {shape} {dtype} on {device}, not {tuple(given.shape)} {given.dtype}"
            )
