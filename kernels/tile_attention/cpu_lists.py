"""What the tiles of one chunk read before their own rows, worked out on the host."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headway.kernels.paged_attention.cpu_schedule import Sequence
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers

NOWHERE = np.iinfo(np.int64).max // 2  # where negative entries go: behind all keys


class Listed(NamedTuple):
    """Runs of `width` keys; one list serves `share` tiles, which all read its keys before `common`."""

    starts: Numbers  # [H, lists, K]
    width: int
    share: int
    common: Numbers  # [H, lists]


class DenseRun(NamedTuple):
    """List heads [head, stop_head) read everything in the tiles [first, stop)."""

    head: int
    stop_head: int
    first: int
    stop: int


@dataclass(frozen=True)
class TileLists:
    """One list of keys for each tile and each of H heads: 1, Hkv or Hq, the most that any argument names.

    Attributes:
        slots: [N], where in the cache each key of the sequence lies.
        rows: [tiles], the position of each tile's first row.
        local: [H, tiles], where its local part begins.
        dense: [H, tiles], whether that is everything.
        sink_size: keys from the first on; 0 without a local part.
    """

    slots: Numbers
    rows: Numbers
    local: Numbers
    dense: npt.NDArray[np.bool_]
    sink_size: int
    listed: tuple[Listed, ...]

    @classmethod
    def of(
        cls, plan: AttentionPlan, tile: int, local_from: Tensor | None, sink_size: int,
        spans: Tensor | None, span: int, columns: Tensor | None,
    ) -> "TileLists":  # fmt: skip
        stop = plan.host_kv_lens[0]
        rows = np.arange(stop - plan.num_tokens, stop, tile)
        slots = plan.memo("tile slots", lambda: Sequence.of(plan, 0, flat=True).slots(0, stop))
        heads = max(len(given) for given in (local_from, spans, columns, rows[None]) if given is not None)
        if local_from is None:
            sink_size = 0
            local = np.broadcast_to(rows, (heads, len(rows)))
            dense = np.zeros(local.shape, dtype=bool)
        else:
            local = _for_heads(np.minimum(local_from.numpy(), rows).clip(0), heads)
            dense = local == 0
        ends = np.where(dense, NOWHERE, local)
        listed = []
        for given, width in ((spans, span), (columns, 1)):
            if given is None or not given.numel():
                continue
            starts = given.numpy().astype(np.int64)
            starts[starts < 0] = NOWHERE
            share = -(-len(rows) // starts.shape[1])
            common = np.full((heads, starts.shape[1]), sink_size)
            if share > 1:
                least = np.minimum.reduceat(ends, np.arange(0, len(rows), share), axis=1)
                common[:, : least.shape[1]] = np.where(least == NOWHERE, 0, least).clip(sink_size)
            listed.append(Listed(starts, width, share, common))
        return cls(slots, rows, local, dense, sink_size, tuple(listed))

    def common(self, tiles: range) -> Iterator[tuple[int, int, list[Numbers]]]:
        """Slots for each head that all tiles [a, b) read, of those in `tiles`."""
        for listed in self.listed:
            if listed.share == 1:
                continue
            for i in range(tiles.start // listed.share, -(-tiles.stop // listed.share)):
                begin = max(tiles.start, i * listed.share)
                end = min(tiles.stop, (i + 1) * listed.share)
                low = np.full(len(self.local), self.sink_size)
                yield begin, end, self._inside(listed, i, low, listed.common[:, i])

    def of_tiles(self, tiles: range) -> Iterator[tuple[int, int, list[Numbers]]]:
        """Slots for each head of what else a tile reads before its own rows; none where it is dense."""
        for tile in tiles:
            found = [
                [self.slots[: min(self.sink_size, local)], self.slots[local : self.rows[tile]]]
                for local in self.local[:, tile]
            ]
            for listed in self.listed:
                i = tile // listed.share
                keys = self._inside(listed, i, listed.common[:, i], self.local[:, tile])
                found = [[*parts, part] for parts, part in zip(found, keys, strict=True)]
            sparse = zip(found, ~self.dense[:, tile], strict=True)
            slots = [np.concatenate(parts) if some else self.slots[:0] for parts, some in sparse]
            yield tile, tile + 1, slots

    def dense_runs(self, group: int) -> Iterator[DenseRun]:
        """Dense tiles side by side of heads that agree on them; `group` heads at most, if not all agree."""
        alike = bool((self.dense == self.dense[0]).all())
        keys = [(0 if alike else head // group, row.tobytes()) for head, row in enumerate(self.dense)]
        for _, members in groupby(range(len(keys)), keys.__getitem__):
            heads = list(members)
            edges = np.flatnonzero(np.diff(self.dense[heads[0]].astype(np.int8), prepend=0, append=0))
            for first, stop in edges.reshape(-1, 2).tolist():
                yield DenseRun(heads[0], heads[-1] + 1, first, stop)

    def _inside(self, listed: Listed, i: int, low: Numbers, high: Numbers) -> list[Numbers]:
        """Slots for each head of list i's keys in [low, high)."""
        keys = (listed.starts[:, i, :, None] + np.arange(listed.width)).reshape(len(listed.starts), -1)
        keys = _for_heads(keys, len(self.local))
        inside = (keys >= low[:, None]) & (keys < high[:, None])
        return [self.slots[keys[head, here]] for head, here in enumerate(inside)]


def _for_heads(numbers: Numbers, heads: int) -> Numbers:
    """[H, ...] repeated so that it serves so many heads."""
    return np.repeat(numbers, heads // len(numbers), axis=0)
