"""Scores of the tokens of listed units, read where they lie."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.kernels.cpu_compile import compiled, widen
from headway.kernels.cpu_scores import ROWS, Floats, Part, Strides, score_rows
from headway.kernels.paged_attention.plan import Numbers


@compiled
def score_listed(
    part: Part, query: Floats, keys: Any, strides: Strides, page_size: int, pages: Numbers, starts: Numbers,
    kv_lens: Numbers, lists: NDArray[np.int32], unit: int, softcap: np.float32, out: Floats,
) -> None:  # fmt: skip
    """query `[B, H, G, D]` times the keys of the units in lists `[B, H, M]`, part[0] to part[1] of B * H.

    keys as `flat` gives them; pages: those of all sequences, those of one from its `starts` on. Writes the
    highest of each group into out `[B, H, M * unit]`, which holds -inf.
    """
    heads, width = lists.shape[1:]
    dim = query.shape[3]
    step = max(1, ROWS // unit)  # units
    # Copied first: a loop that only reads keeps many reads from memory under way.
    tile, at = np.empty((step * unit, dim), np.float32), np.arange(step * unit) * dim
    for item in range(part[0], part[1]):
        row, head = item // heads, item % heads
        chosen, own = lists[row, head], query[row, head : head + 1]
        into = out[row, head].reshape(1, 1, -1)
        for first in range(0, width, step):
            count = 0
            for place in range(first, min(first + step, width)):
                token = np.int64(chosen[place]) * unit
                if token < 0:
                    break
                page, slot = pages[starts[row] + token // page_size], token % page_size
                start = page * strides[0] + slot * strides[1] + head * strides[2]
                for _ in range(min(unit, kv_lens[row] - token)):
                    number, copied = keys[start : start + dim], tile[count]
                    for d in range(dim):
                        copied[d] = widen(number[d])
                    start += strides[1]
                    count += 1
            if count == 0:
                break
            score_rows(own, tile.reshape(-1), at[:count], dim, softcap, into, first * unit)
