"""Queries of one token each against keys and values where they lie: a group's heads share what is read.

Measured on an Intel Xeon, 8 heads on 2 of 32: 15 us for 300 tokens, 230 for 16 sequences of as many, and for
131,072 tokens 9,200 on one thread and 4,900 on two, where PyTorch's flash kernel takes 14,000 and 6,700.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from headway.kernels.cpu_compile import compiled, widen
from headway.kernels.cpu_tile import TILE, Floats, Ints, attend_tile, begin, finish, new_tile, scale_query

Strides = tuple[int, int, int]  # of a cache: page, token, head
Strided = tuple[Any, tuple[int, int, int]]  # `flat` memory of `[R, H, D]`, and its strides


@compiled
def attend_all(
    split: int, splits: int, part: tuple[int, int], query: Strided, factor: np.float32, new_keys: Strided,
    new_values: Strided, keys: Any, key_strides: Strides, values: Any, value_strides: Strides, page_size: int,
    tables: Ints, table_starts: Ints, rows: Ints, first_tokens: Ints, kv_lens: Ints, softcap: np.float32,
    sinks: Floats, dim: int, out: Floats, lse: Floats,
) -> None:  # fmt: skip
    """Queries of the sequences `rows` against their tokens from `first_tokens[row]` to `kv_lens[row]`.

    query `[R, Hkv * G, dim]`; new_keys `[R, Hkv, dim]` and new_values `[R, Hkv, Dv]`, which are stored first
    as each sequence's last, or none; keys and values as `flat` gives them; factor: scale * log2(e), or
    scale / softcap where softcap > 0; tables: the pages of all sequences, those of one from its
    `table_starts` on; sinks `[Hkv, G]` or `[0, G]`. Of the rows part[0] to part[1], and of `splits` equal
    parts of each one's tokens, part `split` is done: writes out[split] of `[splits, R, Hkv, G, Dv]` and
    lse[split] of `[splits, R, Hkv, G]`. Heads are innermost, as their keys lie side by side.
    """
    heads, group, value_dim = out.shape[2:]
    own, tile = np.empty((heads, group, dim), np.float32), new_tile(group, dim, value_dim)
    acc = np.empty((heads, group, value_dim), np.float32)
    peak, total = np.empty((heads, group), np.float32), np.empty((heads, group), np.float32)
    at, next_at = np.empty((2, TILE), np.int64), np.empty((2, TILE), np.int64)
    asked = 0  # tokens of a row's first tile, if the row before has asked for them
    for number in range(part[0], part[1]):
        row = rows[number]
        start, end = _part(first_tokens[row], kv_lens[row], split, splits)
        pages = tables[table_starts[row] :]
        if split == splits - 1:
            page, slot = pages[(end - 1) // page_size], (end - 1) % page_size
            _put(new_keys, number, heads, dim, keys, key_strides, page, slot)
            _put(new_values, number, heads, value_dim, values, value_strides, page, slot)
        for head in range(heads):
            _take(query, number, head * group, factor, own[head])
            begin(sinks, head, split, acc[head], peak[head], total[head])
        count = asked or _next_tile(start, end, pages, page_size, key_strides, value_strides, at)
        asked = 0
        while count:
            start += count
            coming = _next_tile(start, end, pages, page_size, key_strides, value_strides, next_at)
            if coming == 0 and number + 1 < part[1]:
                following = rows[number + 1]
                first, last = _part(first_tokens[following], kv_lens[following], split, splits)
                pages = tables[table_starts[following] :]
                asked = _next_tile(first, last, pages, page_size, key_strides, value_strides, next_at)
            for head in range(heads):
                key, value = head * key_strides[2], head * value_strides[2]
                attend_tile(
                    own[head], (keys, at[0], key), (values, at[1], value), count, softcap, tile, acc[head],
                    peak[head], total[head], (keys, next_at[0], key), (values, next_at[1], value),
                    max(coming, asked),
                )  # fmt: skip
            at, next_at, count = next_at, at, coming
        for head in range(heads):
            finish(acc[head], peak[head], total[head], out[split, number, head], lse[split, number, head])


@compiled
def attend_listed(
    split: int, splits: int, query: Any, factor: np.float32, keys: Any, key_strides: Strides, values: Any,
    value_strides: Strides, page_size: int, tables: Ints, table_starts: Ints, rows: Ints, lists: Any,
    unit: int, kv_heads: int, kv_lens: Ints, softcap: np.float32, sinks: Floats, out: Floats, lse: Floats,
) -> int:  # fmt: skip
    """Queries of the sequences `rows` against the units that `lists` `[B, Hs, M]` names, -1 behind them.

    As `attend_all`, but query is a dense `[B, L, G, D]`, its lanes L being the larger of Hs and the KV heads,
    out and lse have B for R, and nothing is stored. Returns the first sequence found whose list names a unit
    that it does not have, else -1.
    """
    lanes, group, dim = query.shape[1:]
    value_dim = out.shape[4]
    own, tile = np.empty((group, dim), np.float32), new_tile(group, dim, value_dim)
    acc = np.empty((group, value_dim), np.float32)
    peak, total = np.empty(group, np.float32), np.empty(group, np.float32)
    at, next_at = np.empty((2, TILE), np.int64), np.empty((2, TILE), np.int64)
    for row in rows:
        for lane in range(lanes):
            head = lane * kv_heads // lanes
            key, value = head * key_strides[2], head * value_strides[2]
            scale_query(query[row, lane], factor, own)
            begin(sinks, lane, split, acc, peak, total)
            chosen = lists[row, lane * lists.shape[1] // lanes]
            length = len(chosen)
            while length and chosen[length - 1] < 0:
                length -= 1
            count = coming = 0
            for index in range(length * split // splits, length * (split + 1) // splits):
                start = np.int64(chosen[index]) * unit
                end = min(start + unit, kv_lens[row])
                if start < 0 or start >= end:
                    return row  # type: ignore[no-any-return]
                page, slot = tables[table_starts[row] + start // page_size], start % page_size
                for token in range(slot, slot + end - start):
                    next_at[0, coming] = page * key_strides[0] + token * key_strides[1]
                    next_at[1, coming] = page * value_strides[0] + token * value_strides[1]
                    coming += 1
                    if coming == TILE:
                        attend_tile(
                            own, (keys, at[0], key), (values, at[1], value), count, softcap, tile, acc, peak,
                            total, (keys, next_at[0], key), (values, next_at[1], value), coming,
                        )  # fmt: skip
                        at, next_at, count, coming = next_at, at, coming, 0
            for _ in range(2):
                attend_tile(
                    own, (keys, at[0], key), (values, at[1], value), count, softcap, tile, acc, peak, total,
                    (keys, next_at[0], key), (values, next_at[1], value), coming,
                )  # fmt: skip
                at, next_at, count, coming = next_at, at, coming, 0
            finish(acc, peak, total, out[split, row, lane], lse[split, row, lane])
    return -1


@register_jitable
def _part(first: int, end: int, split: int, splits: int) -> Any:
    """Where one of equal parts of the tokens from `first` to `end` begins and ends."""
    return first + (end - first) * split // splits, first + (end - first) * (split + 1) // splits


@register_jitable
def _put(
    new: Strided, row: int, heads: int, dim: int, cache: Any, strides: Strides, page: int, slot: int
) -> None:
    numbers, (row_stride, head_stride, stride) = new
    if len(numbers) > 0:
        for head in range(heads):
            place = page * strides[0] + slot * strides[1] + head * strides[2]
            for d in range(dim):
                cache[place + d] = numbers[row * row_stride + head * head_stride + d * stride]


@register_jitable
def _take(query: Strided, row: int, head: int, factor: np.float32, into: Floats) -> None:
    numbers, (row_stride, head_stride, stride) = query
    for g in range(len(into)):
        place = row * row_stride + (head + g) * head_stride
        for d in range(into.shape[1]):
            into[g, d] = widen(numbers[place + d * stride]) * factor


@register_jitable
def _next_tile(
    start: int, end: int, pages: Ints, page_size: int, key_strides: Strides, value_strides: Strides, at: Ints
) -> Any:
    """How many of the tokens from `start` to `end` come next, and where their keys and values lie."""
    count = min(TILE, end - start, page_size - start % page_size)
    if count > 0:
        page, slot = pages[start // page_size], start % page_size
        for t in range(count):
            at[0, t] = page * key_strides[0] + (slot + t) * key_strides[1]
            at[1, t] = page * value_strides[0] + (slot + t) * value_strides[1]
    return count
