"""Dot products of query groups with rows of a paged table where they lie, for compiled kernels.

Measured on an Intel Xeon, one thread: a listed key of 32 numbers times its four query heads takes 10 ns, 20
from memory; a bfloat16 row of bounds of 64 numbers times one query 4 and 8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba.extending import register_jitable
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import exp2, widen
from headway.kernels.cpu_tile import LINE
from headway.kernels.cpu_vectors import LANES, eight_dots, prefetch
from headway.kernels.cpu_workers import share_out

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
Strides = tuple[int, int, int]  # of a table: page, unit, KV head
Part = tuple[int, int]  # of a kernel's items: the first, and the end

ROWS = 64  # whose places are listed at a time
SHARED_NUMBERS = 4 * 1024 * 1024  # of the rows that are read: below, threads cost more than they save
MINUS_TWO_LOG2_E = np.float32(-2.8853900817779268)


def group_queries(
    query: Tensor, num_kv_heads: int, scale: float, softcap: float | None, reduce: str
) -> tuple[Floats, int]:
    """query `[B, Hq, D]` -> `[B, Hkv, G, D]`, times scale / softcap; and L, the rows of scores of a group."""
    batch, heads, dim = query.shape
    groups = query.float().numpy().reshape(batch, num_kv_heads, -1, dim)
    factor = scale / (softcap or 1.0)
    if reduce == "mean" and softcap is None:  # the mean of products is the product of the mean
        groups, factor = np.add.reduce(groups, 2, keepdims=True), factor * num_kv_heads / heads
    groups = np.multiply(groups, np.float32(factor), order="C")
    return groups, 1 if reduce == "max" else groups.shape[2]


def score_in_parts(
    score: Callable[[Part, Floats], None], items: int, numbers: int, shape: tuple[int, ...], reduce: str
) -> Tensor:
    """Scores `[B, Hkv or Hq, N]`: `score` writes those of some items into `[B, Hkv, L, N]` = `shape`.

    numbers: how many it reads for all items; where they are many, threads share the items out.
    """
    scores = np.full(shape, -np.inf, np.float32)
    if numbers < SHARED_NUMBERS:
        score((0, items), scores)
    else:
        share_out(lambda some: score((some.start, some.stop), scores), range(items))
    by_group = torch.from_numpy(scores)
    return by_group.mean(2) if reduce == "mean" and shape[2] > 1 else by_group.flatten(1, 2)


@register_jitable
def score_rows(
    query: Floats, table: Any, places: Places, count: int, next_places: Places, coming: int, head_stride: int,
    softcap: np.float32, room: Floats, out: Floats, into: int,
) -> None:  # fmt: skip
    """query `[Hkv, G, D]` times `count` rows of the `flat` table; their first KV heads begin at `places`.

    Writes out `[Hkv, 1 or G, N]` from `into` on: one row there takes the group's highest. Where softcap > 0,
    a score becomes tanh of it times softcap. Meanwhile the `coming` rows at `next_places` are asked
    for. `room`: `[G, len(places)]`; `places` has room for whole vectors.
    """
    heads, group, dim = query.shape
    whole = dim // LANES * LANES
    line = LINE * 4 // table.itemsize
    for t in range(count, -(-count // LANES) * LANES):
        places[t] = places[count - 1]
    for head in range(heads):
        offset = head * head_stride
        for g in range(group):
            start = (head * group + g) * dim
            for t in range(0, count, LANES):
                for row in range(t + LANES * g // group, min(coming, t + LANES * (g + 1) // group)):
                    for d in range(0, dim, line):
                        prefetch(table, next_places[row] + offset + d)  # type: ignore[call-arg]
                held = g * room.shape[1] + t
                eight_dots(query, start, table, places, offset, t, whole, room, held)  # type: ignore[call-arg]
            for d in range(whole, dim):
                for t in range(count):
                    room[g, t] += query[head, g, d] * widen(table[places[t] + offset + d])
        scores = out[head, :, into : into + count]
        for g in range(group):
            lane = min(g, len(scores) - 1)
            for t in range(count):
                scores[lane, t] = room[g, t] if lane == g else max(scores[lane, t], room[g, t])
        if softcap > 0:
            for lane in range(len(scores)):
                _cap(scores[lane], softcap)


@register_jitable
def _cap(scores: Floats, softcap: np.float32) -> None:
    for n in range(len(scores)):
        power = exp2(MINUS_TWO_LOG2_E * abs(scores[n]))
        capped = softcap * (1 - power) / (1 + power)
        scores[n] = capped if scores[n] > 0 else -capped
