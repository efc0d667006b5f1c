"""top_k on a CPU: little but counting the scores above a bound, which takes 0.05 ns a score.

A bound is bisected by its rank among all float32 numbers, so that at most 32 counts find it: first a rough
one, then, among the scores above that, the exact one. Measured on Zen 3, one thread, beside 12 us a call: the
512 largest of 8,192 scores in 4 us, of 131,072 in 22.
"""

from typing import Any

import numpy as np
import torch
from numba.extending import register_jitable
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import compiled_exactly, flat
from headway.kernels.cpu_workers import share_out
from headway.kernels.top_k.cpu_masks import LANES, larger, lowest

MANY_SCORES = 1 << 21  # so many take several times as long as to hand them to another thread
GROUPS, FEWEST_GROUPS = 4, 128  # of a long row, for each score wanted and in all
LEAST, MOST = -0x7F800001, 0x7F800000  # ranks of -inf and inf

Floats = NDArray[np.float32]
Places = NDArray[np.int32]


def top_k(scores: Tensor, k: int, limits: Tensor | None) -> Tensor:
    rows = scores.detach().reshape(-1, scores.shape[-1])
    (num_rows, length), stride, memory = rows.shape, rows.stride(0), flat(rows)
    counts = np.empty(0, np.int64) if limits is None else flat(limits.long().contiguous())
    out = np.empty((*scores.shape[:-1], k), np.int32)
    chosen = out.reshape(num_rows, k)

    def some(items: range) -> None:
        choose((items.start, items.stop), memory, stride, length, counts, FEWEST_GROUPS, chosen)

    if num_rows * length < MANY_SCORES:
        some(range(num_rows))
    else:
        share_out(some, range(num_rows))
    return torch.from_numpy(out)


@compiled_exactly
def choose(
    items: tuple[int, int], memory: Floats, stride: int, length: int, limits: NDArray[np.int64],
    fewest_groups: int, out: Places,
) -> None:  # fmt: skip
    """Rows items[0] to items[1], `stride` apart; `limits` is empty where there are none."""
    places, values = np.empty(length, np.int32), np.empty(length, np.float32)
    for item in range(items[0], items[1]):
        row, chosen = memory[item * stride : item * stride + length], out[item]
        count = min(len(chosen), length)
        if len(limits):
            count = max(0, min(count, limits[item]))
        taken = 0
        if count:
            rough = _rough_bound(row, count, fewest_groups, values)
            found = values[: _set_aside(row, rough, places, values)]
            taken = _take(found, places, count, _bound(found, count, 0, rough), chosen)
        chosen[taken:] = -1


@register_jitable
def _rough_bound(row: Floats, count: int, fewest_groups: int, tops: Floats) -> int:
    """A bound of few more than `count` scores: of a long row, so many of the maxima of disjoint groups.

    A group is spread over the row, so that neighbours, which tend to be alike, are in different ones.
    """
    width = max(GROUPS * count, fewest_groups)
    if len(row) < 2 * width:
        return _bound(row, count, count >> 2, LEAST)
    tops = tops[:width]
    tops[:] = -np.inf
    for start in range(0, len(row) - 2 * width + 1, 2 * width):
        one, two = row[start : start + width], row[start + width : start + 2 * width]
        for i in range(width):
            top = tops[i]
            top = one[i] if one[i] > top else top  # NaN never is
            top = two[i] if two[i] > top else top
            tops[i] = top
    return _bound(tops, count, count >> 3, LEAST)


@register_jitable
def _bound(scores: Floats, count: int, surplus: int, low: int) -> int:
    """The rank of a number below `count` scores and at most `surplus` more, or as many more as are equal.

    `low` if fewer are above that.
    """
    high = MOST
    if _above(scores, low) <= count + surplus or _above(scores, low + 1) < count:
        return low
    while high - low > 1:
        middle = (low + high) >> 1
        above = _above(scores, middle)
        if above < count:
            high = middle
        else:
            low = middle
            if above <= count + surplus:
                break
    return low


@register_jitable
def _above(scores: Floats, rank: int) -> Any:
    bound, total = _number(rank), np.int32(0)  # no wider than a score, for vectors' sake
    for i in range(len(scores)):
        total = np.int32(total + np.int32(scores[i] > bound))
    return total


@register_jitable
def _set_aside(row: Floats, rank: int, places: Places, values: Floats) -> Any:
    """Write the places and values of all scores above a bound; their number."""
    bound, whole = _number(rank), len(row) // LANES * LANES
    held = np.uint64(0)  # an index that cannot be negative is not looked at
    for start in range(0, whole, LANES):
        bits = larger(row[start : start + LANES], bound)
        while bits:
            places[held] = start + np.int64(lowest(bits))
            held += np.uint64(1)
            bits &= np.uint32(bits - np.uint32(1))
    for i in range(whole, len(row)):
        places[held] = i
        held += np.uint64(row[i] > bound)
    for i in range(held):
        values[i] = row[places[i]]
    return held


@register_jitable
def _take(scores: Floats, places: Places, count: int, rank: int, chosen: Places) -> int:
    """Write the places of `count` scores above a bound, of the smallest ones the first; their number."""
    smallest, taken = _number(rank + 1), 0
    spare = count - _above(scores, rank + 1)
    for i in range(len(scores)):
        if taken == count:
            break
        if scores[i] > smallest or (scores[i] == smallest and spare > 0):
            spare -= scores[i] == smallest
            chosen[taken] = places[i]
            taken += 1
    return taken


@register_jitable
def _number(rank: int) -> Any:
    """The float32 number that so many others lie between it and zero, below it if negative."""
    bits = np.int32(rank)
    return np.int32(bits ^ (np.int32(bits >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)
