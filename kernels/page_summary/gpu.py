"""page_summary in Triton: one program per page and KV head."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


def summarise_pages(
    key_cache: Tensor, pages: Tensor, filled: Tensor, bounds: Tensor | None, mean: Tensor | None
) -> None:
    _, page_size, num_kv_heads, dim = key_cache.shape
    if len(pages) == 0:
        return
    into_bounds = key_cache if bounds is None else bounds  # a pointer that is never followed
    into_mean = key_cache if mean is None else mean
    summarise_kernel[len(pages), num_kv_heads](
        key_cache, pages, filled, into_bounds, into_mean,
        pages.stride(0), filled.stride(0), *key_cache.stride(),
        into_bounds.stride(0), *into_bounds.stride()[2:], into_mean.stride(0), *into_mean.stride()[2:],
        **summary_constants(dim, page_size, bounds=bounds is not None, mean=mean is not None),
    )  # fmt: skip


def summary_constants(dim: int, page_size: int, *, bounds: bool, mean: bool) -> dict[str, Any]:
    """Everything that specialises the kernel, `num_warps` included."""
    block_d = triton.next_power_of_2(dim)
    most = max(1, 8192 // block_d)  # of a tile's numbers, each thread holds 64
    return {
        "DIM": dim, "PAGE_SIZE": page_size, "BLOCK_D": block_d,
        "BLOCK_T": min(most, triton.next_power_of_2(page_size)),
        "BOUNDS": bounds, "MEAN": mean, "num_warps": 4,
    }  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def summarise_kernel(  # type: ignore[no-untyped-def]
    key_cache, pages, filled, bounds, mean, page_stride, filled_stride,
    key_page, key_token, key_head, key_dim, bounds_page, bounds_head, bounds_dim,
    mean_page, mean_head, mean_dim,
    DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    BOUNDS: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    page = tl.load(pages + index * page_stride)  # int64: a pool can hold more than 2^31 elements
    if page < 0:
        return
    count = tl.load(filled + index * filled_stride).to(tl.int32)
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < DIM
    keys = key_cache + page * key_page + head * key_head
    high = tl.full([BLOCK_D], float("-inf"), tl.float32)
    low = tl.full([BLOCK_D], float("inf"), tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.static_range(0, PAGE_SIZE, BLOCK_T):
        tokens = start + tl.arange(0, BLOCK_T)
        present = (tokens < count)[:, None]
        cells = keys + tokens[:, None] * key_token + dims[None, :] * key_dim
        tile = tl.load(cells, mask=present & is_dim[None, :], other=0.0).to(tl.float32)
        if BOUNDS:
            high = tl.maximum(high, tl.max(tl.where(present, tile, float("-inf")), 0))
            low = tl.minimum(low, tl.min(tl.where(present, tile, float("inf")), 0))
        if MEAN:
            total += tl.sum(tile, 0)
    if BOUNDS:
        into = bounds + page * bounds_page + head * bounds_head
        if bounds.dtype.element_ty == tl.bfloat16:
            high = upper_half(high, high > 0)
            low = upper_half(low, low < 0)
        tl.store(into + dims * bounds_dim, high.to(bounds.dtype.element_ty), mask=is_dim)
        tl.store(into + (DIM + dims) * bounds_dim, low.to(bounds.dtype.element_ty), mask=is_dim)
    if MEAN:
        into = mean + page * mean_page + head * mean_head
        tl.store(into + dims * mean_dim, (total / count).to(mean.dtype.element_ty), mask=is_dim)


@triton.jit
def upper_half(numbers, grows):  # type: ignore[no-untyped-def]
    """fp32 numbers that bf16 holds: the next one away from zero where `grows`, else towards zero."""
    bits = numbers.to(tl.int32, bitcast=True)
    more = tl.where(grows & ((bits & 0xFFFF) != 0), 0x10000, 0)
    return ((bits & -0x10000) + more).to(tl.float32, bitcast=True)
