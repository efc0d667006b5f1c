"""Scores of the tokens of listed units, read where they lie."""

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from headway.kernels.cpu_compile import compiled
from headway.kernels.cpu_scores import ROWS, Floats, Part, Strides, score_rows
from headway.kernels.cpu_vectors import LANES
from headway.kernels.paged_attention.plan import Numbers

Chosen = NDArray[np.int32]


@compiled
def score_listed(
    part: Part, query: Floats, keys: Any, strides: Strides, page_size: int, pages: Numbers, starts: Numbers,
    kv_lens: Numbers, lists: Chosen, unit: int, softcap: np.float32, out: Floats,
) -> None:  # fmt: skip
    """query `[B, H, G, D]` times the keys of the units in lists `[B, H, M]`, part[0] to part[1] of B * H.

    keys as `flat` gives them; pages: those of all sequences, those of one from its `starts` on. Writes the
    highest of each group into out `[B, H, M * unit]`, which holds -inf.
    """
    heads = lists.shape[1]
    step = max(1, ROWS // unit)  # units
    places, next_places = np.empty((2, -(-step * unit // LANES) * LANES), np.int64)
    room = np.empty((query.shape[2], len(places)), np.float32)
    for item in range(part[0], part[1]):
        row, head = item // heads, item % heads
        chosen, own = lists[row, head], query[row, head : head + 1]
        into, length, own_pages = out[row, head].reshape(1, 1, -1), kv_lens[row], pages[starts[row] :]
        first, offset = 0, head * strides[2]
        count = _places(chosen[:step], unit, length, own_pages, page_size, strides, offset, places)
        while count:
            place, first = first * unit, first + step
            some = chosen[first : first + step]
            coming = _places(some, unit, length, own_pages, page_size, strides, offset, next_places)
            score_rows(own, keys, places, count, next_places, coming, 0, softcap, room, into, place)
            places, next_places, count = next_places, places, coming


@register_jitable
def _places(
    chosen: Chosen, unit: int, kv_len: int, pages: Numbers, page_size: int, strides: Strides, offset: int,
    places: Numbers,
) -> int:  # fmt: skip
    """Where the tokens of units begin, up to the first -1; how many there are."""
    count = 0
    for number in chosen:
        token = np.int64(number) * unit
        if token < 0:
            break
        start = pages[token // page_size] * strides[0] + token % page_size * strides[1] + offset
        for slot in range(min(np.int64(unit), kv_len - token)):
            places[count] = start + slot * strides[1]
            count += 1
    return count
