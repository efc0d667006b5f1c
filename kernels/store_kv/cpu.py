"""store_kv on a CPU: one indexed copy over the cache seen as a flat row of slots."""

from torch import Tensor


def store_kv(
    key: Tensor, value: Tensor | None, key_cache: Tensor, value_cache: Tensor | None, slot_mapping: Tensor
) -> None:
    try:
        _scatter(key, key_cache, slot_mapping)
    except IndexError:  # cheaper than to look for negative slots in every layer of every step
        kept = slot_mapping >= 0
        slot_mapping, key = slot_mapping[kept], key[kept]
        value = None if value is None else value[kept]
        _scatter(key, key_cache, slot_mapping)
    if value is not None and value_cache is not None:
        _scatter(value, value_cache, slot_mapping)


def _scatter(new: Tensor, cache: Tensor, slots: Tensor) -> None:
    num_pages, page_size, *row = cache.shape
    if cache.stride(0) == page_size * cache.stride(1):
        flat = cache.as_strided((num_pages * page_size, *row), cache.stride()[1:])
        flat.index_copy_(0, slots, new)
    else:  # head-first layout: slots of two pages are not one stride apart
        if bool((slots < 0).any()):
            raise IndexError("a slot is negative")
        cache[slots // page_size, slots % page_size] = new
