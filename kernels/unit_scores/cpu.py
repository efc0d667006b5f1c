"""unit_scores on a CPU: one compiled call reads the pages of all sequences where they lie, once."""

from typing import Any

import numpy as np
from numba.extending import register_jitable
from torch import Tensor

from headway.kernels.cpu_compile import compiled
from headway.kernels.cpu_pages import page_tables, strided
from headway.kernels.cpu_scores import ROWS, Floats, Part, Strides, group_queries, score_in_parts, score_rows
from headway.kernels.cpu_vectors import LANES
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers
from headway.kernels.unit_scores import Reduction


def unit_scores(
    query: Tensor, table: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    reduce: Reduction, active: Tensor | None,
) -> Tensor:  # fmt: skip
    _, units, num_kv_heads, dim = table.shape
    groups, lanes = group_queries(query, num_kv_heads, scale, softcap, reduce)
    rows, strides = strided(table)
    pages, starts, kv_lens = page_tables(plan)
    if active is not None:
        kv_lens = kv_lens * active.numpy()
    cap = np.float32(softcap or 0.0)

    def score(part: Part, out: Floats) -> None:
        _score(part, groups, rows, strides, units, plan.page_size, pages, starts, kv_lens, cap, out)

    shape = len(query), num_kv_heads, lanes, units * plan.max_pages
    return score_in_parts(score, len(pages), len(pages) * units * num_kv_heads * dim, shape, reduce)


@compiled
def _score(
    part: Part, query: Floats, table: Any, strides: Strides, units: int, page_size: int, pages: Numbers,
    starts: Numbers, kv_lens: Numbers, softcap: np.float32, out: Floats,
) -> None:  # fmt: skip
    """query `[B, Hkv, G, D]` times the units of the pages from part[0] to part[1], into out `[B, Hkv, L, N]`.

    table as `flat` gives it; pages: those of all sequences, those of one from its `starts` on; kv_lens: 0 for
    a sequence that is not wanted. out holds -inf.
    """
    step = max(1, ROWS // units)  # pages
    places, next_places = np.empty((2, -(-step * units // LANES) * LANES), np.int64)
    room = np.empty((query.shape[2], len(places)), np.float32)
    for row in range(len(starts)):
        own, into = query[row], out[row]
        start, end = starts[row], starts[row] - (-kv_lens[row] // page_size)
        scored = -(-kv_lens[row] * units // page_size)
        first, last = max(part[0], start), min(part[1], end)
        count = _places(pages[first : min(first + step, last)], units, strides, places)
        while count:
            place, first = (first - start) * units, first + step
            coming = _places(pages[first : min(first + step, last)], units, strides, next_places)
            score_rows(
                own, table, places, min(count, scored - place), next_places, coming, strides[2], softcap,
                room, into, place,
            )  # fmt: skip
            places, next_places, count = next_places, places, coming


@register_jitable
def _places(pages: Numbers, units: int, strides: Strides, places: Numbers) -> int:
    """Where the first head of each unit begins; how many there are."""
    count = 0
    for page in pages:
        for slot in range(units):
            places[count] = page * strides[0] + slot * strides[1]
            count += 1
    return count
