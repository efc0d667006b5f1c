"""Dot products of query groups with rows of a paged table where they lie, for compiled kernels.

Measured on Zen 3, one thread, for a row of 32 numbers and its four query heads: 9 ns, 2 of them for
reading it from the CPU's cache; 12 to 15 from memory, if that is read in its order: KV heads innermost.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba.extending import register_jitable
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import exp2, widen
from headway.kernels.cpu_workers import share_out
from headway.kernels.paged_attention.plan import Numbers

Floats = NDArray[np.float32]
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
    query: Floats, table: Any, at: Numbers, head_stride: int, softcap: np.float32, out: Floats, place: int
) -> None:
    """query `[Hkv, G, D]` times the rows whose first KV head begins at `at` in the `flat` table.

    Writes out `[Hkv, 1 or G, N]` from `place` on: one row there takes the group's highest. Where softcap > 0,
    a score becomes tanh of it times softcap.
    """
    heads, group, dim = query.shape
    lanes = out.shape[1]
    for g in range(0, group - 3, 4):
        for t in range(len(at)):
            for head in range(heads):
                own, start = query[head], at[t] + head * head_stride
                one, two, three, four = own[g], own[g + 1], own[g + 2], own[g + 3]
                row = table[start : start + dim]
                a = b = c = e = np.float32(0)
                for d in range(dim):
                    x = widen(row[d])
                    a += one[d] * x
                    b += two[d] * x
                    c += three[d] * x
                    e += four[d] * x
                into, n = out[head], place + t
                if lanes == 1:
                    best = max(a, b, c, e)
                    into[0, n] = best if g == 0 else max(into[0, n], best)
                else:
                    into[g, n], into[g + 1, n], into[g + 2, n], into[g + 3, n] = a, b, c, e
    for g in range(group // 4 * 4, group):
        lane = min(g, lanes - 1)
        fresh = lane == g  # else NaN might not show: max(-inf, NaN) may be -inf
        for t in range(0, len(at) - 3, 4):
            for head in range(heads):
                alone, offset = query[head, g], head * head_stride
                first, second = at[t] + offset, at[t + 1] + offset
                third, fourth = at[t + 2] + offset, at[t + 3] + offset
                one, two = table[first : first + dim], table[second : second + dim]
                three, four = table[third : third + dim], table[fourth : fourth + dim]
                a = b = c = e = np.float32(0)
                for d in range(dim):
                    x = alone[d]
                    a += x * widen(one[d])
                    b += x * widen(two[d])
                    c += x * widen(three[d])
                    e += x * widen(four[d])
                into, n = out[head, lane], place + t
                if fresh:
                    into[n], into[n + 1], into[n + 2], into[n + 3] = a, b, c, e
                else:
                    into[n], into[n + 1] = max(into[n], a), max(into[n + 1], b)
                    into[n + 2], into[n + 3] = max(into[n + 2], c), max(into[n + 3], e)
        for t in range(len(at) // 4 * 4, len(at)):
            for head in range(heads):
                alone, start = query[head, g], at[t] + head * head_stride
                row = table[start : start + dim]
                a = np.float32(0)
                for d in range(dim):
                    a += alone[d] * widen(row[d])
                into, n = out[head, lane], place + t
                into[n] = a if fresh else max(into[n], a)
    if softcap > 0:
        for head in range(heads):
            for lane in range(lanes):
                _cap(out[head, lane, place : place + len(at)], softcap)


@register_jitable
def _cap(scores: Floats, softcap: np.float32) -> None:
    for n in range(len(scores)):
        power = exp2(MINUS_TWO_LOG2_E * abs(scores[n]))
        capped = softcap * (1 - power) / (1 + power)
        scores[n] = capped if scores[n] > 0 else -capped
