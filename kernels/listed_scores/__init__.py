"""listed_scores: exact scores of the tokens of listed units, to rank the tokens of a shortlist."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

from headway.kernels import dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["GroupReduction", "listed_scores"]

GroupReduction = Literal["max", "mean"]


def listed_scores(
    query: Tensor,
    key_cache: Tensor,
    plan: AttentionPlan,
    indices: Tensor,
    unit: int,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    reduce: GroupReduction = "max",
    active: Tensor | None = None,
) -> Tensor:
    """Score every token of the units listed for B sequences that bring one query each.

    query `[B, Hq, D]` and key_cache `[num_pages, page_size, Hkv, D]`, any strides, one floating dtype; plan:
    B sequences of one new token each. Query head h reads KV head h // (Hq // Hkv).

    indices `[B, Hs, M]` int32 names units of `unit` tokens of the sequence, unit 0 its first: ascending,
    distinct, padded with -1 at the end. `unit` divides the page size. Hs = 1 list serves all KV heads,
    Hs = Hkv lists one each.

    Returns fp32 `[B, Hkv, M * unit]`: at m * unit + j the score of token `indices[m] * unit + j`, which is
    the maximum or mean (`reduce`) over the query heads of the KV head of scale * q·k, accumulated in fp32;
    `softcap` replaces each head's s by tanh(s / softcap) * softcap before. -inf stands at padding, at tokens
    past the sequence's end, and in all of a row b whose `active[b]` (bool `[B]`) is False.

    Raises ValueError when an argument does not fit the others and, on a CPU, when the list of an active row
    names a unit that the sequence does not have. A GPU does not look: the caller guarantees the range, and
    the host waits for nothing.
    """
    _check(query, key_cache, plan, indices, unit, softcap, reduce, active)
    run = _implementation(dispatch.version(query))
    return run(query, key_cache, plan, indices, unit, scale, softcap, reduce, active)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").listed_scores  # type: ignore[no-any-return]


def _check(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int,
    softcap: float | None, reduce: GroupReduction, active: Tensor | None,
) -> None:  # fmt: skip
    shape, key_shape, chosen = query.shape, key_cache.shape, indices.shape
    if len(key_shape) != 4:
        raise ValueError(
            f"key_cache must be [num_pages, page_size, num_kv_heads, head_dim], not {tuple(key_shape)}"
        )
    num_pages, page_size, num_kv_heads, dim = key_shape
    if len(shape) != 3 or shape[2] != dim or shape[1] == 0 or shape[1] % num_kv_heads:
        raise ValueError(f"query must be [B, a multiple of {num_kv_heads} heads, {dim}], not {tuple(shape)}")
    batch, device = shape[0], query.device
    if not query.dtype.is_floating_point or query.dtype != key_cache.dtype:
        raise ValueError(
            f"query and key_cache must share a floating dtype, not {query.dtype}, {key_cache.dtype}"
        )
    if not device == key_cache.device == plan.device == indices.device:
        raise ValueError(
            f"query is on {device}, key_cache on {key_cache.device}, plan on {plan.device}, "
            f"indices on {indices.device}"
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
    if (
        indices.dtype != torch.int32
        or len(chosen) != 3
        or chosen[0] != batch
        or chosen[1] not in (1, num_kv_heads)
        or chosen[2] == 0
    ):
        raise ValueError(
            f"indices must be int32 [{batch}, 1 or {num_kv_heads}, at least 1], "
            f"not {indices.dtype} {tuple(chosen)}"
        )
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if reduce not in ("max", "mean"):
        raise ValueError(f"reduce must be max or mean, not {reduce!r}")
    if active is not None and (
        active.shape != shape[:1] or active.dtype != torch.bool or active.device != device
    ):
        got = f"{active.dtype} {tuple(active.shape)} on {active.device}"
        raise ValueError(f"active must be bool [{batch}] on {device}, not {got}")
