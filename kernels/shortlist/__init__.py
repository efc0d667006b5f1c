"""shortlist: the best tokens of the best units, by exact scores of those units' tokens alone."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["Shortlisted", "shortlist"]


class Shortlisted(NamedTuple):
    """What a shortlist gives.

    Attributes:
        tokens: int32 `[B, Hkv, k]`, ascending, padded with -1 at the end.
        places: int32 like them, where in `scores` each one's score stands; -1 where there is none.
        scores: fp32 `[B, Hkv, M]`, of all tokens of the listed units, -inf where there is none.
    """

    tokens: Tensor
    places: Tensor
    scores: Tensor


def shortlist(
    query: Tensor,
    unit_scores: Tensor,
    key_cache: Tensor,
    plan: AttentionPlan,
    unit: int,
    *,
    units: int,
    tokens: int,
    unit_limits: Tensor | None = None,
    token_limits: Tensor | None = None,
    sink_size: int = 0,
    window_size: int = 0,
    scale: float = 1.0,
    softcap: float | None = None,
    active: Tensor | None = None,
) -> Shortlisted:
    """List the `units` best units of each KV head, score their tokens, and keep the `tokens` best of these.

    query `[B, Hq, D]` and key_cache `[num_pages, page_size, Hkv, D]` as `listed_scores` takes them, for B
    sequences that bring one query each; unit_scores fp32 `[B, Hkv, N]` of units of `unit` tokens, -inf behind
    a sequence's end, contiguous; overwritten. The first `sink_size` and the last `window_size` tokens of a
    sequence, and their units, come before all others, the first of them first. unit_limits and token_limits
    int64 `[B]`: a sequence gets no more than that; `active` bool `[B]`: the others get nothing. A token's
    score is the maximum over the query heads of its KV head. Of equal scores the first are taken.

    Raises ValueError when an argument does not fit the others.
    """
    shape = len(query), key_cache.shape[2]
    if unit_scores.dtype != torch.float32 or unit_scores.ndim != 3 or unit_scores.shape[:2] != shape:
        got = f"{unit_scores.dtype} {tuple(unit_scores.shape)}"
        raise ValueError(f"unit_scores must be float32 [{shape[0]}, {shape[1]}, N], not {got}")
    if not unit_scores.is_contiguous():
        raise ValueError("unit_scores must be contiguous")
    if unit < 1 or plan.page_size % unit:
        raise ValueError(f"unit must divide the page size of {plan.page_size}, not be {unit}")
    if min(units, tokens) < 1 or min(sink_size, window_size) < 0:
        raise ValueError("units and tokens must be positive, sink_size and window_size not negative")
    checks.query_heads(query, "B", "key_cache", key_cache.shape[2], key_cache.shape[3])
    checks.floating_dtype(query, key_cache=key_cache)
    checks.one_device(query, unit_scores=unit_scores, key_cache=key_cache, plan=plan)
    checks.plan_pages(plan, key_cache)
    checks.softcap_positive(softcap)
    checks.active_rows(active, query)
    for name, limits in (("unit_limits", unit_limits), ("token_limits", token_limits)):
        if limits is not None and (limits.shape != query.shape[:1] or limits.dtype != torch.int64):
            raise ValueError(f"{name} must be int64 [{shape[0]}], not {limits.dtype} {tuple(limits.shape)}")
    run = _implementation(dispatch.version(query))
    return run(
        query, unit_scores, key_cache, plan, unit, units, tokens, unit_limits, token_limits, sink_size,
        window_size, scale, softcap, active,
    )  # fmt: skip


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Shortlisted]:
    """A GPU has no kernel of its own for it: the reference there is a chain of those of its parts."""
    module = "cpu" if version == "cpu" else "reference"
    return import_module(f"{__name__}.{module}").shortlist  # type: ignore[no-any-return]
