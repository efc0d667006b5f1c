"""store_kv in Triton: one program per token, all heads, key and value."""

import triton
import triton.language as tl
from torch import Tensor


def store_kv(
    key: Tensor, value: Tensor | None, key_cache: Tensor, value_cache: Tensor | None, slot_mapping: Tensor
) -> None:
    tokens, heads, key_dim = key.shape
    if tokens == 0:
        return
    new_value = key if value is None else value  # a pointer that a key-only kernel never follows
    into_value = key_cache if value_cache is None else value_cache
    value_dim = new_value.shape[2]
    store_kernel[(tokens,)](
        key, new_value, key_cache, into_value, slot_mapping,
        *key.stride(), *new_value.stride(), *key_cache.stride(), *into_value.stride(), slot_mapping.stride(0),
        PAGE_SIZE=key_cache.shape[1], KEY_DIM=key_dim, VALUE_DIM=value_dim,
        KEY_ROW=heads * key_dim, VALUE_ROW=heads * value_dim,
        BLOCK=min(1024, triton.next_power_of_2(heads * max(key_dim, value_dim))),
        HAS_VALUE=value is not None, num_warps=4,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def store_kernel(  # type: ignore[no-untyped-def]
    key, value, key_cache, value_cache, slot_mapping,
    key_token, key_head, key_dim,
    value_token, value_head, value_dim,
    key_cache_page, key_cache_token, key_cache_head, key_cache_dim,
    value_cache_page, value_cache_token, value_cache_head, value_cache_dim,
    slot_stride,
    PAGE_SIZE: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    KEY_ROW: tl.constexpr, VALUE_ROW: tl.constexpr, BLOCK: tl.constexpr, HAS_VALUE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token * slot_stride)
    if slot < 0:
        return
    page = slot // PAGE_SIZE  # int64: a pool can hold more than 2^31 elements
    offset = slot % PAGE_SIZE
    for start in tl.static_range(0, KEY_ROW, BLOCK):
        cell = start + tl.arange(0, BLOCK)
        head, dim = cell // KEY_DIM, cell % KEY_DIM
        row = tl.load(key + token * key_token + head * key_head + dim * key_dim, mask=cell < KEY_ROW)
        into = key_cache + page * key_cache_page + offset * key_cache_token
        tl.store(into + head * key_cache_head + dim * key_cache_dim, row, mask=cell < KEY_ROW)
    if HAS_VALUE:
        for start in tl.static_range(0, VALUE_ROW, BLOCK):
            cell = start + tl.arange(0, BLOCK)
            head, dim = cell // VALUE_DIM, cell % VALUE_DIM
            row = tl.load(
                value + token * value_token + head * value_head + dim * value_dim, mask=cell < VALUE_ROW
            )
            into = value_cache + page * value_cache_page + offset * value_cache_token
            tl.store(into + head * value_cache_head + dim * value_cache_dim, row, mask=cell < VALUE_ROW)
