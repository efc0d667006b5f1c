"""shortlist on a CPU: one compiled call, where the chain's two dozen take as long as what they compute."""

from typing import Any

import numpy as np
import torch
from numba.extending import register_jitable
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import compiled_exactly
from headway.kernels.cpu_pages import page_tables, strided
from headway.kernels.cpu_scores import SHARED_NUMBERS, Floats, Part, Strides, group_queries
from headway.kernels.cpu_workers import share_out
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers
from headway.kernels.shortlist import Shortlisted
from headway.kernels.shortlist.cpu_listed import score_listed
from headway.kernels.top_k.cpu import FEWEST_GROUPS, choose

Places = NDArray[np.int32]


def shortlist(
    query: Tensor, unit_scores: Tensor, key_cache: Tensor, plan: AttentionPlan, unit: int, units: int,
    tokens: int, unit_limits: Tensor | None, token_limits: Tensor | None, sink_size: int, window_size: int,
    scale: float, softcap: float | None, active: Tensor | None,
) -> Shortlisted:  # fmt: skip
    batch, heads, _ = unit_scores.shape
    groups, _ = group_queries(query, heads, scale, softcap, "max")
    keys, strides = strided(key_cache)
    pages, starts, kv_lens = page_tables(plan)
    if active is not None:
        kv_lens = kv_lens * active.numpy()
    listed = np.empty((batch, heads, units), np.int32)
    scores = np.full((batch, heads, units * unit), -np.inf, np.float32)
    places, best = np.empty((2, batch, heads, tokens), np.int32)
    rows = unit_scores.numpy()

    def some(items: range) -> None:
        _shortlist(
            (items.start, items.stop), groups, rows, keys, strides, plan.page_size, pages, starts,
            kv_lens, unit, sink_size, window_size, np.float32(softcap or 0.0), _limits(unit_limits, heads),
            _limits(token_limits, heads), listed, scores, places, best,
        )  # fmt: skip

    if scores.size * query.shape[2] < SHARED_NUMBERS:
        some(range(batch * heads))
    else:
        share_out(some, range(batch * heads))
    return Shortlisted(torch.from_numpy(best), torch.from_numpy(places), torch.from_numpy(scores))


def _limits(limits: Tensor | None, heads: int) -> Numbers:
    return np.empty(0, np.int64) if limits is None else limits.numpy().repeat(heads)


@compiled_exactly
def _shortlist(
    part: Part, query: Floats, unit_scores: Floats, keys: Any, strides: Strides, page_size: int,
    pages: Numbers, starts: Numbers, kv_lens: Numbers, unit: int, sink_size: int, window_size: int,
    softcap: np.float32, unit_limits: Numbers, token_limits: Numbers, listed: Places, scores: Floats,
    places: Places, best: Places,
) -> None:  # fmt: skip
    """The KV heads of sequences, one after the other, from part[0] to part[1]; limits: one for each, or none.

    query `[B, Hkv, G, D]`; scores holds -inf; kv_lens: 0 for a sequence that is not wanted.
    """
    heads, length = unit_scores.shape[1:]
    lists = listed.reshape(-1, listed.shape[2])
    for item in range(part[0], part[1]):
        row, head = item // heads, item % heads
        latest, end = max(0, kv_lens[row] - window_size), -(-kv_lens[row] // unit)
        unit_scores[row, head, : min(end, -(-sink_size // unit))] = np.inf
        unit_scores[row, head, latest // unit : end] = np.inf
    choose(part, unit_scores.reshape(-1), length, length, unit_limits, FEWEST_GROUPS, lists)
    score_listed(part, query, keys, strides, page_size, pages, starts, kv_lens, listed, unit, softcap, scores)
    for item in range(part[0], part[1]):
        row, head = item // heads, item % heads
        strengths = scores[row, head].copy()
        _put_first(lists[item], unit, sink_size, kv_lens[row] - window_size, strengths)
        limit, kept = token_limits[item : item + 1], places[row, head : head + 1]
        choose((0, 1), strengths, 0, len(strengths), limit, FEWEST_GROUPS, kept)
        for i in range(places.shape[2]):
            place = places[row, head, i]
            best[row, head, i] = lists[item, place // unit] * unit + place % unit if place >= 0 else -1


@register_jitable
def _put_first(listed: Places, unit: int, sink_size: int, latest: int, strengths: Floats) -> None:
    """Sinks and what comes from `latest` on, which stand at the two ends of an ascending list."""
    for place in range(min(sink_size, len(strengths))):
        if listed[place // unit] * unit + place % unit < sink_size and strengths[place] > -np.inf:
            strengths[place] = np.inf
    last = len(listed) - 1
    while last >= 0 and (listed[last] < 0 or (listed[last] + 1) * unit > latest):
        for place in range(last * unit, (last + 1) * unit):
            if listed[last] * unit + place % unit >= latest and strengths[place] > -np.inf:
                strengths[place] = np.inf
        last -= 1
