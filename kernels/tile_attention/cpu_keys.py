"""Keys and values of several lists, copied side by side from wherever they lie in a paged cache."""

import torch
from torch import Tensor

from headway.kernels.cpu_scratch import Scratch
from headway.kernels.paged_attention.cpu_cache import CpuCache

_scratch = Scratch()


class ListedKeys:
    """A cache as `lanes` lists see it: as many for each KV head."""

    def __init__(self, kv: CpuCache, lanes: int) -> None:
        self.kv = kv
        caches = {"key": kv.key} if kv.shared else {"key": kv.key, "value": kv.value}
        self.rows = {name: _rows_of_lanes(cache, kv.cost.flat, lanes) for name, cache in caches.items()}
        self.token_bytes = sum(cache.shape[3] * cache.itemsize for cache in caches.values())

    def copy(self, first: int, slots: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Keys `[n, M, Dk]` and values `[n, M, Dv]` of n lists of M slots, from list `first` on.

        They last until the next copy. Shared keys stand in for the values whole, as in CpuCache.
        """
        copies = [
            self._copy(name, rows[first : first + len(slots)], slots) for name, rows in self.rows.items()
        ]
        return copies[0], copies[-1]

    def _copy(self, name: str, rows: list[Tensor], slots: list[Tensor]) -> Tensor:
        copies = _scratch.take(name, (len(slots), len(slots[0]), rows[0].shape[-1]), rows[0].dtype)
        for one, chosen, copied in zip(rows, slots, copies.unbind(), strict=True):
            if self.kv.cost.flat:
                torch.index_select(one, 0, chosen, out=copied)
            else:
                copied.copy_(one[chosen // one.shape[1], chosen % one.shape[1]])
        return self.kv.widen(copies)


def _rows_of_lanes(cache: Tensor, flat: bool, lanes: int) -> list[Tensor]:
    """For each lane its KV head's rows: `[num_slots, D]`, or `[num_pages, page_size, D]` if not flat."""
    num_pages, page_size, num_kv_heads, dim = cache.shape
    heads = list(cache.unbind(2))
    if flat:
        heads = [rows.as_strided((num_pages * page_size, dim), rows.stride()[1:]) for rows in heads]
    return [heads[lane * num_kv_heads // lanes] for lane in range(lanes)]
