"""The specification of store_kv."""

from torch import Tensor


def store_kv(
    key: Tensor, value: Tensor | None, key_cache: Tensor, value_cache: Tensor | None, slot_mapping: Tensor
) -> None:
    page_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        page, offset = divmod(slot, page_size)
        key_cache[page, offset] = key[token]
        if value is not None and value_cache is not None:
            value_cache[page, offset] = value[token]
