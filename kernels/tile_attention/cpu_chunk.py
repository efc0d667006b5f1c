"""The rows of a chunk and what attention over parts of their keys has come to so far."""

from collections.abc import Iterator

import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_cache import CpuCache
from headway.kernels.paged_attention.plan import Numbers
from headway.kernels.tile_attention.cpu_attend import attend
from headway.kernels.tile_attention.cpu_keys import ListedKeys

COPY_BYTES = 8 * 1024 * 1024  # K and V of one call: all heads of a tile at the usual budgets


class ChunkRows:
    """Query `[T, Hq, Dk]` of a chunk whose lists are for `heads` heads: 1, Hkv or Hq.

    Heads that read one list of a KV head stand together as rows, so that its keys are copied once.
    """

    def __init__(
        self, query: Tensor, kv: CpuCache, heads: int, tile: int, scale: float, softcap: float | None
    ) -> None:
        self.tokens, self.value_dim = query, kv.value_dim
        self.tile, self.scale, self.softcap = tile, scale, softcap
        self.lanes = max(heads, kv.num_kv_heads)
        by_lane = query.view(len(query), self.lanes, -1, query.shape[2]).transpose(0, 1)
        self.query = by_lane.contiguous()  # [lanes, T, G, Dk]
        # fp32 whatever the query is: parts are merged into both
        self.out = torch.zeros((*self.query.shape[:3], kv.value_dim), dtype=torch.float32)
        self.lse = torch.full(self.query.shape[:3], float("-inf"), dtype=torch.float32)
        self.keys = ListedKeys(kv, self.lanes)

    def attend(self, first: int, stop: int, slots: list[Numbers]) -> None:
        """Add the keys at `slots`, a list for each of the heads, to the tiles [first, stop)."""
        rows = slice(first * self.tile, stop * self.tile)
        for lane, chosen in self._calls(slots):
            lanes = slice(lane, lane + len(chosen))
            key, value = self.keys.copy(lane, chosen)
            query = self.query[lanes, rows].flatten(1, 2)
            part, part_lse = attend(query[None], key[None], value[None], self.scale, self.softcap)
            part = part[0, ..., : self.value_dim]
            add(self.out[lanes, rows].flatten(1, 2), self.lse[lanes, rows].flatten(1, 2), part, part_lse[0])

    def _calls(self, slots: list[Numbers]) -> Iterator[tuple[int, list[Tensor]]]:
        """Lists of equal length from a lane on, cut so that the copies of a call stay small."""
        limit = max(1, COPY_BYTES // self.keys.token_bytes)
        lists = [torch.from_numpy(numbers) for numbers in slots]
        lists = [lists[lane * len(lists) // self.lanes] for lane in range(self.lanes)]
        lane = 0
        while lane < self.lanes:
            length = len(lists[lane])
            stop = lane + 1
            while stop < self.lanes and len(lists[stop]) == length and (stop + 1 - lane) * length <= limit:
                stop += 1
            pieces = -(-length // limit)
            for i in range(pieces):
                piece = slice(length * i // pieces, length * (i + 1) // pieces)
                yield lane, [chosen[piece] for chosen in lists[lane:stop]]
            lane = stop

    def write(self, out: Tensor, lse: Tensor) -> None:
        """To out `[T, Hq, Dv]` and lse `[T, Hq]`."""
        out.view(len(out), self.lanes, -1, self.value_dim).copy_(self.out.transpose(0, 1))
        lse.view(len(lse), self.lanes, -1).copy_(self.lse.transpose(0, 1))

    def add_diagonal(self, key: Tensor, value: Tensor, out: Tensor, lse: Tensor) -> None:
        """To what was written: each tile's own keys, of which key and value `[T, Hkv, D]` are the chunk's."""
        tokens = len(out)
        whole = tokens - tokens % self.tile
        for start, stop in ((0, whole), (whole, tokens)):
            if start == stop:
                continue
            size = min(self.tile, stop - start)
            tile_query, tile_key, tile_value = (
                x[start:stop].view(-1, size, *x.shape[1:]).transpose(1, 2) for x in (self.tokens, key, value)
            )  # [tiles, H, size, D]
            part, part_lse = attend(tile_query, tile_key, tile_value, self.scale, self.softcap, causal=True)
            part, part_lse = part.transpose(1, 2).flatten(0, 1), part_lse.transpose(1, 2).flatten(0, 1)
            add(out[start:stop], lse[start:stop], part[..., : self.value_dim], part_lse)


def add(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a part into out `[..., D]` and lse `[...]` in place; rows without keys have zeros and -inf."""
    weight = torch.sigmoid(part_lse - lse).nan_to_num_(0.0)  # -inf - -inf
    out.lerp_(part.to(out.dtype), weight.unsqueeze(-1).to(out.dtype))
    torch.logaddexp(lse, part_lse, out=lse)
