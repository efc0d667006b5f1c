"""listed_scores on a CPU: one compiled call reads the listed keys of all sequences where they lie."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import compiled, widen
from headway.kernels.cpu_pages import page_tables, strided
from headway.kernels.cpu_scores import ROWS, Floats, Part, Strides, group_queries, score_in_parts, score_rows
from headway.kernels.listed_scores import GroupReduction
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers


def listed_scores(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int, scale: float,
    softcap: float | None, reduce: GroupReduction, active: Tensor | None,
) -> Tensor:  # fmt: skip
    page_size, num_kv_heads, dim = key_cache.shape[1:]
    batch, num_lists, width = indices.shape
    groups, lanes = group_queries(query, num_kv_heads, scale, softcap, reduce)
    keys, strides = strided(key_cache)
    pages, starts, kv_lens = page_tables(plan)
    if active is not None:
        kv_lens = kv_lens * active.numpy()
    groups = groups.reshape(batch, num_lists, -1, *groups.shape[2:])
    lists, cap = indices.contiguous().numpy(), np.float32(softcap or 0.0)

    def score(part: Part, out: Floats) -> None:
        by_list = out.reshape(batch, num_lists, -1, *out.shape[2:])
        wrong = score_listed(
            part, groups, keys, strides, page_size, pages, starts, kv_lens, lists, unit, cap, by_list
        )
        if wrong >= 0:
            raise ValueError(
                f"indices[{wrong}] names unit {lists[wrong].max()}, of {unit} tokens each, "
                f"in a sequence of {kv_lens[wrong]} tokens"
            )

    shape = batch, num_kv_heads, lanes, width * unit
    numbers = batch * num_kv_heads * width * unit * dim
    return score_in_parts(score, batch * num_lists * width, numbers, shape, reduce)


@compiled
def score_listed(
    part: Part, query: Floats, keys: Any, strides: Strides, page_size: int, pages: Numbers, starts: Numbers,
    kv_lens: Numbers, lists: NDArray[np.int32], unit: int, softcap: np.float32, out: Floats,
) -> int:  # fmt: skip
    """query `[B, Hs, H, G, D]` times the keys of the units from part[0] to part[1] of all lists `[B, Hs, M]`.

    H: KV heads that a list serves; keys as `flat` gives them; pages: those of all sequences, those of one
    from its `starts` on; kv_lens: 0 for a sequence that is not wanted. out `[B, Hs, H, L, M * unit]` holds
    -inf. Returns the first sequence found whose list names a unit that it does not have, else -1.
    """
    num_lists, width = lists.shape[1:]
    heads, dim = query.shape[2], query.shape[4]
    step = max(1, ROWS // unit)  # units
    # Copied first: a loop that only reads keeps many reads from memory under way.
    tile, at = np.empty((step * unit, heads, dim), np.float32), np.arange(step * unit) * (heads * dim)
    for row in range(len(lists)):
        for lane in range(num_lists if kv_lens[row] else 0):
            own, into, chosen = query[row, lane], out[row, lane], lists[row, lane]
            before = (row * num_lists + lane) * width
            last = min(part[1] - before, width)
            for first in range(max(part[0] - before, 0), last, step):
                count = 0
                for place in range(first, min(first + step, last)):
                    token = np.int64(chosen[place]) * unit
                    if token < 0:
                        break
                    if token >= kv_lens[row]:
                        return row
                    page, slot = pages[starts[row] + token // page_size], token % page_size
                    key = page * strides[0] + slot * strides[1] + lane * heads * strides[2]
                    for _ in range(min(unit, kv_lens[row] - token)):
                        for head in range(heads):
                            start = key + head * strides[2]
                            number, copied = keys[start : start + dim], tile[count, head]
                            for d in range(dim):
                                copied[d] = widen(number[d])
                        key += strides[1]
                        count += 1
                score_rows(own, tile.reshape(-1), at[:count], dim, softcap, into, first * unit)
    return -1
