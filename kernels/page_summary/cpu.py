"""page_summary on a CPU: each page's keys read once where they lie, channels side by side in vectors.

Measured on Zen 3, one thread, pages of 64 keys with 2 heads of 32: 15 us, and 0.3 more for each page.
"""

from math import prod
from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import compiled_exactly, flat, widen
from headway.kernels.cpu_workers import share_out
from headway.kernels.page_summary.cpu_narrow import narrow

MANY_NUMBERS = 1 << 21  # so many take several times as long as to hand them to another thread
NOTHING = np.empty(0, np.float32), (0, 0, 0, 0)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Strides = tuple[int, ...]  # page, token, head, channel


def summarise_pages(
    key_cache: Tensor, pages: Tensor, filled: Tensor, bounds: Tensor | None, mean: Tensor | None
) -> None:
    if key_cache.stride(3) != 1:
        key_cache = key_cache.contiguous()
    shape, numbers, counts = tuple(key_cache.shape), flat(pages.contiguous()), flat(filled.contiguous())
    keys, highs_lows, means = _walkable(key_cache), _walkable(bounds), _walkable(mean)

    def summarise(items: range) -> None:
        part = items.start, items.stop
        wrong = _summarise(part, shape, numbers, counts, *keys, *highs_lows, *means)
        if wrong == 1:
            raise IndexError(f"pages holds {numbers.max()}, key_cache has {shape[0]} pages")
        if wrong == 2:
            raise ValueError(f"filled must lie between 1 and page_size = {shape[1]}")

    if len(numbers) * prod(shape[1:]) < MANY_NUMBERS:
        summarise(range(len(numbers)))
    else:
        share_out(summarise, range(len(numbers)))


def _walkable(tensor: Tensor | None) -> tuple[NDArray[Any], Strides]:
    return NOTHING if tensor is None else (flat(tensor), tensor.stride())


@compiled_exactly
def _summarise(
    items: tuple[int, int], shape: tuple[int, ...], pages: Ints, filled: Ints, keys: Any, strides: Strides,
    bounds: Any, bounds_strides: Strides, mean: Any, mean_strides: Strides,
) -> int:  # fmt: skip
    """`pages` from items[0] to items[1]; none and 1 if one lies beyond the cache, 2 if a count is wrong."""
    num_pages, page_size, heads, dim = shape
    for i in range(len(pages)):
        if pages[i] >= num_pages:
            return 1
    for i in range(len(pages)):
        if pages[i] >= 0 and not 1 <= filled[i] <= page_size:
            return 2
    at_once = heads if strides[2] == dim else 1  # heads side by side are read as one
    high, low = np.empty(at_once * dim, np.float32), np.empty(at_once * dim, np.float32)
    for item in range(items[0] * heads, items[1] * heads, at_once):
        page, head, count = pages[item // heads], item % heads, filled[item // heads]
        if page < 0:
            continue
        start = page * strides[0] + head * strides[2]
        if len(bounds):
            _bound(keys, start, strides[1], count, high, low)
            _write(high, bounds, page, head, 0, dim, bounds_strides, 1)
            _write(low, bounds, page, head, dim, dim, bounds_strides, -1)
        if len(mean):
            _average(keys, start, strides[1], count, high)
            _write(high, mean, page, head, 0, dim, mean_strides, 0)
    return 0


@register_jitable
def _bound(keys: Any, start: int, stride: int, count: int, high: Floats, low: Floats) -> None:
    """Two keys at a time, the last one twice if need be: compilers make no vectors of one."""
    high[:], low[:] = -np.inf, np.inf
    for t in range(0, count, 2):
        at, next_at = start + t * stride, start + min(t + 1, count - 1) * stride
        key, next_key = keys[at : at + len(high)], keys[next_at : next_at + len(high)]
        for d in range(len(high)):
            one, other, most, least = widen(key[d]), widen(next_key[d]), high[d], low[d]
            most = one if one > most else most
            least = one if one < least else least
            high[d] = other if other > most else most
            low[d] = other if other < least else least


@register_jitable
def _average(keys: Any, start: int, stride: int, count: int, mean: Floats) -> None:
    mean[:] = 0
    for t in range(count):
        key = keys[start + t * stride : start + t * stride + len(mean)]
        for d in range(len(mean)):
            mean[d] += widen(key[d])
    mean /= np.float32(count)


@register_jitable
def _write(
    numbers: Floats, memory: Any, page: Any, head: int, channel: int, dim: int, strides: Strides, end: int
) -> None:
    """`narrow` numbers of heads from `head` on, `dim` each, into a page's summary, from `channel` on."""
    for place in range(0, len(numbers), dim):
        at = page * strides[0] + (head + place // dim) * strides[2] + channel * strides[3]
        for d in range(dim):
            memory[at + d * strides[3]] = narrow(numbers[place + d], memory[at], end)
