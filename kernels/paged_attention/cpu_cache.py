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
        # MLA: values are the first columns of the keys, which stand in for them; the rest is cut afterwards
        same_start = value_cache.data_ptr() == key_cache.data_ptr()
        self.shared = same_start and value_cache.stride() == key_cache.stride()
        self.key, self.value = key_cache, key_cache if self.shared else value_cache
        self.same_dim = self.shared or self.value_dim == key_dim
        self.dtype = key_cache.dtype if multiplies_fast(key_cache.dtype) else torch.float32
        flat = self._is_flat(self.key) and (self.shared or self._is_flat(self.value))
        token_bytes = self.num_kv_heads * (key_dim + self.value_dim) * key_cache.element_size()
        self.cost = ReadCost(token_bytes, flat and self.dtype == key_cache.dtype, flat, self.num_kv_heads)

    def load(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Keys and values `[N, Hkv, D]` of a piece, in place where possible."""
        key = self._read(self.key, piece)
        return key, key if self.shared else self._read(self.value, piece)

    def load_run(self, start: int, length: int, splits: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[splits, Hkv, length, D]` of equal, adjacent runs from slot `start` on."""
        key = self._run(self.key, start, length, splits)
        return key, key if self.shared else self._run(self.value, start, length, splits)

    def widen(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != self.dtype:
            tensor = tensor.to(self.dtype)
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

    def _is_flat(self, kv: Tensor) -> bool:
        page, token, _, dim = kv.stride()
        return page == self.page_size * token and dim == 1

    def _read(self, kv: Tensor, piece: Piece) -> Tensor:
        if not self.cost.flat:
            at = torch.arange(*piece) if isinstance(piece, tuple) else piece
            return self.widen(kv[at // self.page_size, at % self.page_size])
        if isinstance(piece, tuple):
            start, stop = piece
            return self._run(kv, start, stop - start, 1)[0].transpose(0, 1)
        num_pages, page_size, num_kv_heads, dim = kv.shape
        slots = kv.as_strided((num_pages * page_size, num_kv_heads, dim), kv.stride()[1:])
        return self.widen(slots.index_select(0, piece))

    def _run(self, kv: Tensor, start: int, length: int, splits: int) -> Tensor:
        """One view: a decode makes two of these per layer, and each further view costs it a microsecond."""
        _, token, head, _ = kv.stride()
        size = (splits, kv.shape[2], length, kv.shape[3])
        strides = (length * token, head, token, 1)
        return self.widen(kv.as_strided(size, strides, kv.storage_offset() + start * token))
