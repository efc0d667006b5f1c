"""Queries of one token each against keys and values where they lie: a group's heads share what is read.

Tiles of keys and values are copied side by side, widened, and the softmax runs along, in powers of two.
Measured on Zen 3, one thread, 8 heads on 2 of 32: 23 us for 300 tokens, where PyTorch's flash kernel takes
93, about 300 for 16 sequences of 290 to 383, where it takes 690, gathered first, 450 for 8,192, where it
takes 350, and 11,500 for 131,072, as it does: there memory decides.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from headway.kernels.cpu_compile import compiled, exp2, widen

TILE = 64  # tokens that are held at a time
LOG2_E = np.float32(1.4426950408889634)
LN_2 = np.float32(0.6931471805599453)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Strides = tuple[int, int, int]  # of a cache: page, token, head


@compiled
def attend_all(
    split: int, splits: int, query: Any, factor: np.float32, keys: Any, key_strides: Strides, values: Any,
    value_strides: Strides, page_size: int, tables: Ints, table_starts: Ints, rows: Ints,
    first_tokens: Ints, kv_lens: Ints, softcap: np.float32, sinks: Floats, out: Floats, lse: Floats,
) -> None:  # fmt: skip
    """Queries of the sequences `rows` against their tokens from `first_tokens[row]` to `kv_lens[row]`.

    query `[R, Hkv, G, D]`, keys and values as `flat` gives them; factor: scale * log2(e), or scale / softcap
    where softcap > 0; tables: the pages of all sequences, those of one from its `table_starts` on; sinks
    `[Hkv, G]` or `[0, G]`. Of `splits` equal parts of each sequence's tokens, part `split` is done: writes
    out[split] of `[splits, R, Hkv, G, Dv]` and lse[split] of `[splits, R, Hkv, G]`. Heads are innermost, as
    their keys lie side by side.
    """
    heads, group, dim = query.shape[1:]
    value_dim = out.shape[4]
    tile_keys, tile_values = np.empty((TILE, dim), np.float32), np.empty((TILE, value_dim), np.float32)
    own = np.empty((heads, group, dim), np.float32)
    scores = np.empty((group, TILE), np.float32)
    acc = np.empty((heads, group, value_dim), np.float32)
    peak, total = np.empty((heads, group), np.float32), np.empty((heads, group), np.float32)
    for number in range(len(rows)):
        row = rows[number]
        for head in range(heads):
            _scaled(query[number, head], factor, own[head])
            _begin(sinks, head, split, acc[head], peak[head], total[head])
        first, length = first_tokens[row], kv_lens[row] - first_tokens[row]
        start, end = first + length * split // splits, first + length * (split + 1) // splits
        while start < end:
            page, slot = tables[table_starts[row] + start // page_size], start % page_size
            count = min(TILE, end - start, page_size - slot)
            for head in range(heads):
                key_at = _place(key_strides, page, slot, head)
                value_at = _place(value_strides, page, slot, head)
                for t in range(count):
                    _copy(keys[key_at : key_at + dim], tile_keys[t])
                    key_at += key_strides[1]
                for t in range(count):
                    _copy(values[value_at : value_at + value_dim], tile_values[t])
                    value_at += value_strides[1]
                _attend_tile(
                    own[head], tile_keys[:count], tile_values[:count], softcap, scores, acc[head],
                    peak[head], total[head],
                )  # fmt: skip
            start += count
        for head in range(heads):
            _finish(acc[head], peak[head], total[head], out[split, number, head], lse[split, number, head])


@compiled
def attend_listed(
    split: int, splits: int, query: Any, factor: np.float32, keys: Any, key_strides: Strides, values: Any,
    value_strides: Strides, page_size: int, tables: Ints, table_starts: Ints, rows: Ints, lists: Any,
    unit: int, kv_heads: int, kv_lens: Ints, softcap: np.float32, sinks: Floats, out: Floats, lse: Floats,
) -> int:  # fmt: skip
    """Queries of the sequences `rows` against the units that `lists` `[B, Hs, M]` names, -1 behind them.

    As `attend_all`, but query is `[B, L, G, D]`, its lanes L being the larger of Hs and the KV heads, and out
    and lse have B for R. Returns the first sequence found whose list names a unit that it does not have,
    else -1.
    """
    lanes, group, dim = query.shape[1:]
    value_dim = out.shape[4]
    tile_keys, tile_values = np.empty((TILE, dim), np.float32), np.empty((TILE, value_dim), np.float32)
    own = np.empty((group, dim), np.float32)
    scores = np.empty((group, TILE), np.float32)
    acc = np.empty((group, value_dim), np.float32)
    peak, total = np.empty(group, np.float32), np.empty(group, np.float32)
    for row in rows:
        for lane in range(lanes):
            head = lane * kv_heads // lanes
            _scaled(query[row, lane], factor, own)
            _begin(sinks, lane, split, acc, peak, total)
            chosen = lists[row, lane * lists.shape[1] // lanes]
            length = len(chosen)
            while length and chosen[length - 1] < 0:
                length -= 1
            held = 0
            for index in range(length * split // splits, length * (split + 1) // splits):
                start = np.int64(chosen[index]) * unit
                end = min(start + unit, kv_lens[row])
                if start < 0 or start >= end:
                    return row  # type: ignore[no-any-return]
                page, slot = tables[table_starts[row] + start // page_size], start % page_size
                key_at = _place(key_strides, page, slot, head)
                value_at = _place(value_strides, page, slot, head)
                for _ in range(end - start):
                    _copy(keys[key_at : key_at + dim], tile_keys[held])
                    _copy(values[value_at : value_at + value_dim], tile_values[held])
                    key_at, value_at, held = key_at + key_strides[1], value_at + value_strides[1], held + 1
                    if held == TILE:
                        _attend_tile(own, tile_keys, tile_values, softcap, scores, acc, peak, total)
                        held = 0
            if held:
                _attend_tile(own, tile_keys[:held], tile_values[:held], softcap, scores, acc, peak, total)
            _finish(acc, peak, total, out[split, row, lane], lse[split, row, lane])
    return -1


@register_jitable
def _place(strides: Strides, page: Any, slot: Any, head: int) -> Any:
    return page * strides[0] + slot * strides[1] + head * strides[2]


@register_jitable(inline="always")
def _copy(numbers: Any, into: Floats) -> None:
    """Before anything is computed: loops that only read keep many reads from memory under way."""
    for d in range(len(into)):
        into[d] = widen(numbers[d])


@register_jitable
def _scaled(query: Any, factor: np.float32, into: Floats) -> None:
    for g in range(len(into)):
        _copy(query[g], into[g])
        into[g] *= factor


@register_jitable
def _begin(sinks: Floats, head: int, split: int, acc: Floats, peak: Floats, total: Floats) -> None:
    acc[:] = 0
    peak[:] = -np.inf
    total[:] = 0
    if split == 0 and len(sinks):  # counted once
        peak[:] = sinks[head] * LOG2_E
        total[:] = 1


@register_jitable
def _attend_tile(
    query: Floats, keys: Floats, values: Floats, softcap: np.float32, scores: Floats, acc: Floats,
    peak: Floats, total: Floats,
) -> None:  # fmt: skip
    """One step of a running softmax: query `[G, D]`, keys `[N, D]`, values `[N, Dv]`, state `[G, ...]`."""
    _score(query, keys, scores)
    for g in range(len(query)):
        mine = scores[g, : len(keys)]
        if softcap > 0:
            _cap(mine, softcap)
        highest = _highest(mine, peak[g])
        if highest > peak[g]:
            shrink = exp2(peak[g] - highest)
            total[g] *= shrink
            acc[g] *= shrink
            peak[g] = highest
        mass = np.float32(0)
        for t in range(len(mine)):
            mine[t] = exp2(mine[t] - highest)
            mass += mine[t]
        total[g] += mass
    _add_values(scores, values, acc)


@register_jitable
def _score(query: Floats, keys: Floats, scores: Floats) -> None:
    """Four heads at a reading of a key."""
    group, dim = query.shape
    for g in range(0, group - 3, 4):
        one, two, three, four = query[g], query[g + 1], query[g + 2], query[g + 3]
        for t in range(len(keys)):
            key = keys[t]
            a = b = c = e = np.float32(0)
            for d in range(dim):
                a += one[d] * key[d]
                b += two[d] * key[d]
                c += three[d] * key[d]
                e += four[d] * key[d]
            scores[g, t], scores[g + 1, t], scores[g + 2, t], scores[g + 3, t] = a, b, c, e
    for g in range(group // 4 * 4, group):
        alone = query[g]
        for t in range(len(keys)):
            key = keys[t]
            a = np.float32(0)
            for d in range(dim):
                a += alone[d] * key[d]
            scores[g, t] = a


@register_jitable
def _cap(scores: Floats, softcap: np.float32) -> None:
    """scores / softcap become tanh(scores / softcap) * softcap * log2(e)."""
    for t in range(len(scores)):
        power = exp2(np.float32(-2) * LOG2_E * abs(scores[t]))
        capped = softcap * LOG2_E * (np.float32(1) - power) / (np.float32(1) + power)
        scores[t] = capped if scores[t] > 0 else -capped


@register_jitable
def _highest(scores: Floats, floor: np.float32) -> np.float32:
    """Eight at a time: one running maximum would make each comparison wait for the one before."""
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
def _add_values(weights: Floats, values: Floats, acc: Floats) -> None:
    """Four heads and two tokens at a reading of values, as few heads as are left with eight tokens."""
    group, dim = acc.shape
    pairs, eights = len(values) // 2 * 2, len(values) // 8 * 8
    for g in range(0, group - 3, 4):
        w1, w2, w3, w4 = weights[g], weights[g + 1], weights[g + 2], weights[g + 3]
        one, two, three, four = acc[g], acc[g + 1], acc[g + 2], acc[g + 3]
        for t in range(0, pairs, 2):
            v1, v2 = values[t], values[t + 1]
            a1, b1, c1, e1 = w1[t], w2[t], w3[t], w4[t]
            a2, b2, c2, e2 = w1[t + 1], w2[t + 1], w3[t + 1], w4[t + 1]
            for d in range(dim):
                one[d] += a1 * v1[d] + a2 * v2[d]
                two[d] += b1 * v1[d] + b2 * v2[d]
                three[d] += c1 * v1[d] + c2 * v2[d]
                four[d] += e1 * v1[d] + e2 * v2[d]
        for t in range(pairs, len(values)):
            _add_value(weights[g : g + 4, t], values[t], acc[g : g + 4])
    left = group // 4 * 4
    for t in range(0, eights, 8):
        v1, v2, v3, v4 = values[t], values[t + 1], values[t + 2], values[t + 3]
        v5, v6, v7, v8 = values[t + 4], values[t + 5], values[t + 6], values[t + 7]
        for g in range(left, group):
            w, into = weights[g, t : t + 8], acc[g]
            a1, a2, b1, b2, c1, c2, e1, e2 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
            for d in range(dim):
                into[d] += (
                    (a1 * v1[d] + a2 * v2[d] + b1 * v3[d] + b2 * v4[d])
                    + (c1 * v5[d] + c2 * v6[d] + e1 * v7[d] + e2 * v8[d])
                )  # fmt: skip
    for t in range(eights, len(values)):
        _add_value(weights[left:, t], values[t], acc[left:])


@register_jitable
def _add_value(weights: Floats, value: Floats, acc: Floats) -> None:
    for g in range(len(acc)):
        into, a = acc[g], weights[g]
        for d in range(len(into)):
            into[d] += a * value[d]


@register_jitable
def _finish(acc: Floats, peak: Floats, total: Floats, out: Floats, lse: Floats) -> None:
    for g in range(len(acc)):
        lse[g] = (peak[g] + np.log2(total[g])) * LN_2 if total[g] > 0 else -np.inf
        share = 1 / total[g] if total[g] > 0 else np.float32(0)
        for d in range(acc.shape[1]):
            out[g, d] = acc[g, d] * share
