"""One tile of a running softmax: a group of queries against some dozens of keys, for compiled kernels.

Scores come first, eight keys at a time, then powers of two, then values. Meanwhile the next tile is asked
for: one that is waited for takes as long to arrive as to compute.
"""

from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable
from numpy.typing import NDArray

from headway.kernels.cpu_compile import exp2, widen
from headway.kernels.cpu_vectors import LANES, WIDE, add_rows, eight_dots, prefetch

TILE = 64  # tokens that are held at a time
LINE = 16  # float32 numbers that memory hands over at a time
LOG2_E = np.float32(1.4426950408889634)
LN_2 = np.float32(0.6931471805599453)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# A flat array, where its rows begin, and what is to be added to that.
Rows = tuple[Any, Ints, int]
# Scores; widened keys and values; where the rows of these begin.
Tile = tuple[Floats, Floats, Floats, Ints, Ints]


@register_jitable
def new_tile(group: int, dim: int, value_dim: int) -> Tile:
    """Room for one tile's scores and, where they are not float32, for its keys and values."""
    order = np.arange(TILE)
    return (
        np.empty((group, TILE), np.float32), np.empty(TILE * dim, np.float32),
        np.empty(TILE * value_dim, np.float32), order * dim, order * value_dim,
    )  # fmt: skip


def rows_of(rows: Rows, count: int, size: int, room: Floats, order: Ints) -> Rows:
    """Rows as dense float32: where they lie if they are that, else in the `room`, one after the other."""
    raise NotImplementedError("compiled kernels only")


@overload(rows_of)
def _rows_of(rows, count, size, room, order):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return _in_place if rows[0].dtype == numba.float32 else _in_room


def _in_place(rows, count, size, room, order):  # type: ignore[no-untyped-def]  # noqa: ARG001
    at = rows[1]
    for t in range(count, -(-count // LANES) * LANES):
        at[t] = at[count - 1]  # rows are read eight at a time
    return rows


def _in_room(rows, count, size, room, order):  # type: ignore[no-untyped-def]
    numbers, at, offset = rows
    for t in range(count):
        row, into = numbers[at[t] + offset : at[t] + offset + size], room[t * size : (t + 1) * size]
        for d in range(size):
            into[d] = widen(row[d])
    return room, order, 0


@register_jitable
def scale_query(query: Any, factor: np.float32, into: Floats) -> None:
    for g in range(len(into)):
        for d in range(into.shape[1]):
            into[g, d] = widen(query[g, d]) * factor


@register_jitable
def begin(sinks: Floats, head: int, split: int, acc: Floats, peak: Floats, total: Floats) -> None:
    counted = split == 0 and len(sinks) > 0  # once
    for g in range(len(acc)):
        peak[g] = sinks[head, g] * LOG2_E if counted else -np.inf
        total[g] = 1 if counted else 0
        for d in range(acc.shape[1]):
            acc[g, d] = 0


@register_jitable(inline="always")
def attend_tile(
    query: Floats, keys: Rows, values: Rows, count: int, softcap: np.float32, tile: Tile, acc: Floats,
    peak: Floats, total: Floats, next_keys: Rows, next_values: Rows, coming: int,
) -> None:  # fmt: skip
    """query `[G, D]` against `count` keys and values, which may be none; state `[G, ...]`.

    coming: rows of the next tile, which are asked for meanwhile.
    """
    scores, key_room, value_room, key_order, value_order = tile
    dim, value_dim = query.shape[1], acc.shape[1]
    wide_keys = rows_of(keys, count, dim, key_room, key_order)
    wide_values = rows_of(values, count, value_dim, value_room, value_order)
    _score(query, wide_keys, count, scores, next_keys, coming)
    for g in range(len(query)):
        mine, before = scores[g, :count], peak[g]
        if softcap > 0:
            _cap(mine, softcap)
        highest = highest_of(mine, before)
        if highest > before:
            shrink, into = exp2(before - highest), acc[g]
            total[g] *= shrink
            peak[g] = highest
            for d in range(value_dim):
                into[d] *= shrink
        total[g] += _powers(mine, highest)
    _add_values(scores, wide_values, count, acc, next_values, coming)


@register_jitable(inline="always")
def _bring(rows: Rows, first: int, last: int, size: int) -> None:
    """Ask for some of the rows that come next."""
    numbers, at, offset = rows
    for row in range(first, last):
        for d in range(0, size, LINE):
            prefetch(numbers, at[row] + offset + d)  # type: ignore[call-arg]


@register_jitable(inline="always")
def _score(query: Floats, keys: Rows, count: int, scores: Floats, next_keys: Rows, coming: int) -> None:
    group, dim = query.shape
    whole = dim // LANES * LANES
    numbers, at, offset = keys
    for g in range(group):
        for t in range(0, count, LANES):
            last = min(coming, t + LANES * (g + 1) // group)
            _bring(next_keys, t + LANES * g // group, last, dim)
            eight_dots(query, g * dim, numbers, at, offset, t, whole, scores, g * TILE + t)  # type: ignore[call-arg]
        if whole < dim:
            mine, into = query[g], scores[g]
            for t in range(count):
                for d in range(whole, dim):
                    into[t] += mine[d] * numbers[at[t] + offset + d]


@register_jitable
def _cap(scores: Floats, softcap: np.float32) -> None:
    """scores / softcap become tanh(scores / softcap) * softcap * log2(e)."""
    for t in range(len(scores)):
        power = exp2(np.float32(-2) * LOG2_E * abs(scores[t]))
        capped = softcap * LOG2_E * (np.float32(1) - power) / (np.float32(1) + power)
        scores[t] = capped if scores[t] > 0 else -capped


@register_jitable
def highest_of(scores: Floats, floor: np.float32) -> np.float32:
    """Of `floor` and all scores; with one running maximum each comparison would wait for the one before."""
    a = b = c = d = e = f = g = h = floor
    whole = len(scores) // 8 * 8
    for t in range(0, whole, 8):
        a, b, c, d = (
            max(a, scores[t]), max(b, scores[t + 1]), max(c, scores[t + 2]), max(d, scores[t + 3])
        )  # fmt: skip
        e, f, g, h = (
            max(e, scores[t + 4]), max(f, scores[t + 5]), max(g, scores[t + 6]), max(h, scores[t + 7])
        )  # fmt: skip
    for t in range(whole, len(scores)):
        a = max(a, scores[t])
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)))


@register_jitable
def _powers(scores: Floats, highest: np.float32) -> np.float32:
    """Make powers of two of them, the highest of which is 1, and sum these up."""
    mass = np.float32(0)
    for t in range(len(scores)):
        scores[t] = exp2(scores[t] - highest)
        mass += scores[t]
    return mass


@register_jitable
def _add_values(
    weights: Floats, values: Rows, count: int, acc: Floats, next_values: Rows, coming: int
) -> None:
    """Two heads at a reading of values, whose channels are summed up in vectors as far as these go."""
    group, dim = acc.shape
    numbers, at, offset = values
    pairs, whole = group // 2 * 2, dim // WIDE * WIDE
    for first in range(0, count, LINE):
        end = min(first + LINE, count)
        _bring(next_values, first, min(end, coming), dim)
        for d in range(0, whole, WIDE):
            for g in range(0, pairs, 2):
                add_rows(  # type: ignore[call-arg]
                    weights, (g * TILE, g * TILE + TILE), numbers, at, offset + d, first, end, acc,
                    (g * dim + d, g * dim + dim + d),
                )  # fmt: skip
            if pairs < group:
                last = pairs * dim + d
                alone = (pairs * TILE,)
                add_rows(weights, alone, numbers, at, offset + d, first, end, acc, (last,))  # type: ignore[call-arg]
        if whole < dim:
            for t in range(first, end):
                p = at[t] + offset + whole
                _add_value(weights[:, t], numbers[p : p + dim - whole], acc[:, whole:])


@register_jitable
def _add_value(weights: Floats, value: Floats, acc: Floats) -> None:
    for g in range(len(acc)):
        into, a = acc[g], weights[g]
        for d in range(len(into)):
            into[d] += a * value[d]


@register_jitable
def finish(acc: Floats, peak: Floats, total: Floats, out: Floats, lse: Floats) -> None:
    for g in range(len(acc)):
        lse[g] = (peak[g] + np.log2(total[g])) * LN_2 if total[g] > 0 else -np.inf
        share = 1 / total[g] if total[g] > 0 else np.float32(0)
        for d in range(acc.shape[1]):
            out[g, d] = acc[g, d] * share
