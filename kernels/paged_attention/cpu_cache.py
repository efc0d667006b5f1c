"""One layer's paged cache as a CPU reads it: flat slots, in a dtype that this CPU multiplies fast."""

from functools import cache

import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_schedule import Piece, ReadCost


@cache
def multiplies_fast(dtype: torch.dtype) -> bool:
    """Without bf16 instructions a bf16 matmul runs at 1/100 of fp32, so such tiles are widened first."""
    if dtype == torch.bfloat16:
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if dtype == torch.float16:
        return torch.cpu._is_amx_fp16_supported()
    return dtype in (torch.float32, torch.float64)


class CpuCache:
    def __init__(self, key_cache: Tensor, value_cache: Tensor) -> None:
        _, self.page_size, self.num_kv_heads, key_dim = key_cache.shape
        self.value_dim = value_cache.shape[3]
        # MLA: values are the first columns of the keys; the keys stand in for them and the rest is cut afterwards
        self.shared = value_cache.data_ptr() == key_cache.data_ptr() and value_cache.stride() == key_cache.stride()
        self.same_dim = self.shared or self.value_dim == key_dim
        self.dtype = key_cache.dtype if multiplies_fast(key_cache.dtype) else torch.float32
        flat = all(
            kv.stride(0) == self.page_size * kv.stride(1) and kv.stride(3) == 1 for kv in (key_cache, value_cache)
        )
        self.key = _flatten(key_cache) if flat else key_cache
        self.value = self.key if self.shared else _flatten(value_cache) if flat else value_cache
        self.cost = ReadCost(
            token_bytes=self.num_kv_heads * (key_dim + self.value_dim) * key_cache.element_size(),
            in_place=flat and self.dtype == key_cache.dtype,
            flat=flat,
            num_kv_heads=self.num_kv_heads,
        )

    def load(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Keys and values `[N, Hkv, D]` of a piece, in place where possible."""
        key = self._read(self.key, piece)
        return key, key if self.shared else self._read(self.value, piece)

    def split_view(self, start: int, length: int, splits: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[splits, Hkv, length, D]` of equal, adjacent runs from slot `start` on."""
        stop = start + splits * length
        key, value = (x.unflatten(0, (splits, length)).transpose(1, 2) for x in self.load((start, stop)))
        return key, value

    def widen(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.dtype)
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

    def _read(self, kv: Tensor, piece: Piece) -> Tensor:
        if isinstance(piece, tuple):
            return self.widen(kv[slice(*piece)])
        if self.cost.flat:
            return self.widen(kv.index_select(0, piece))
        return self.widen(kv[piece // self.page_size, piece % self.page_size])


def _flatten(cache: Tensor) -> Tensor:
    num_pages, page_size, num_kv_heads, dim = cache.shape
    return cache.as_strided((num_pages * page_size, num_kv_heads, dim), cache.stride()[1:])
