"""One layer's paged cache as a CPU reads it: flat slots, in a dtype that this CPU multiplies fast."""

from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_schedule import Piece, ReadCost

Ints = tuple[int, ...]


@cache
def multiplies_fast(dtype: torch.dtype) -> bool:
    """Without bf16 instructions a bf16 matmul runs at 1/100 of fp32, so such tiles are widened first."""
    if dtype == torch.bfloat16:
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if dtype == torch.float16:
        return torch.cpu._is_amx_fp16_supported()
    return dtype in (torch.float32, torch.float64)


class Layout(NamedTuple):
    """What does not change from step to step, nor from layer to layer of a kind."""

    shared: bool  # MLA: values are the first columns of the keys
    same_dim: bool
    value_dim: int
    dtype: torch.dtype  # to compute in
    cost: ReadCost


@lru_cache(maxsize=64)
def _layout(
    key_shape: Ints, key_stride: Ints, value_shape: Ints, value_stride: Ints, dtype: torch.dtype,
    same_start: bool,
) -> Layout:  # fmt: skip
    _, page_size, num_kv_heads, key_dim = key_shape
    value_dim = value_shape[3]
    shared = same_start and value_stride == key_stride
    flat = all(page == page_size * token and dim == 1 for page, token, _, dim in (key_stride, value_stride))
    compute = dtype if multiplies_fast(dtype) else torch.float32
    token_bytes = num_kv_heads * (key_dim + value_dim) * dtype.itemsize
    cost = ReadCost(token_bytes, flat and compute == dtype, flat)
    return Layout(shared, shared or value_dim == key_dim, value_dim, compute, cost)


class CpuCache:
    def __init__(self, key_cache: Tensor, value_cache: Tensor) -> None:
        layout = _layout(
            key_cache.shape, key_cache.stride(), value_cache.shape, value_cache.stride(), key_cache.dtype,
            value_cache.data_ptr() == key_cache.data_ptr(),
        )  # fmt: skip
        self.shared, self.same_dim, self.value_dim, self.dtype, self.cost = layout
        # shared keys stand in for the values whole; what is too much is cut from the output
        self.key, self.value = key_cache, key_cache if self.shared else value_cache

    @property
    def num_kv_heads(self) -> int:
        return self.key.shape[2]

    def load(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Keys and values `[N, Hkv, D]` of a piece, in place where possible."""
        key = self._read(self.key, piece)
        return key, key if self.shared else self._read(self.value, piece)

    def widen(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != self.dtype:
            tensor = tensor.to(self.dtype)
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

    def _read(self, kv: Tensor, piece: Piece) -> Tensor:
        if not self.cost.flat:
            at = torch.arange(*piece) if isinstance(piece, tuple) else piece
            return self.widen(kv[at // kv.shape[1], at % kv.shape[1]])
        num_pages, page_size, *row = kv.shape
        slots = kv.as_strided((num_pages * page_size, *row), kv.stride()[1:])
        return self.widen(slots[slice(*piece)] if isinstance(piece, tuple) else slots.index_select(0, piece))
