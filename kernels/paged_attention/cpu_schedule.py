"""Where a batch's keys lie, and how a CPU best reads them. Host numbers only, shared by all layers of a kind.

Measured on Zen 3, one thread: an attention call costs 20-45 us beside its work, copying keys into one padded
batch 4-9 us per 100 KiB while they stay in the CPU's cache, and more than the attention itself beyond. So a
run of adjacent slots is read in place when it is worth a call, and smaller ones are gathered, several
sequences to a call.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan, Numbers

DIRECT_BYTES = 1024 * 1024  # a run of at least this much K and V is read where it lies
GATHER_BYTES = 4 * 1024 * 1024  # one gathered batch at most; larger ones fall out of the cache and page-fault

Piece = tuple[int, int] | Tensor  # slots [start, stop), or int64 slots to gather


class ReadCost(NamedTuple):
    """What the schedule must know of one layer's cache."""

    token_bytes: int  # K and V of one token
    in_place: bool  # slots are evenly spaced and of a dtype that is fast as it is
    flat: bool  # slots are evenly spaced

    @property
    def direct_tokens(self) -> int:
        return -(-DIRECT_BYTES // self.token_bytes)

    @property
    def gather_tokens(self) -> int:
        return max(64, GATHER_BYTES // self.token_bytes)


class Sequence(NamedTuple):
    """One sequence's rows in the batch and its keys in the cache."""

    rows: slice
    q_len: int
    kv_len: int
    table: Numbers
    page_size: int
    flat: bool

    @classmethod
    def of(cls, plan: AttentionPlan, b: int, flat: bool) -> "Sequence":
        lens = plan.host_q_lens[b], plan.host_kv_lens[b]
        return cls(plan.rows(b), *lens, plan.host_tables[b], plan.page_size, flat)

    @property
    def position(self) -> int:
        return self.kv_len - self.q_len

    def piece(self, start: int, stop: int) -> Piece:
        """The keys at positions [start, stop)."""
        runs = self._runs(start, stop)
        if self.flat and len(runs) == 1:
            return runs[0]
        return torch.from_numpy(self.slots(start, stop))

    def slots(self, start: int, stop: int) -> Numbers:
        """The slots of positions [start, stop)."""
        size = self.page_size
        pages = self.table[start // size : (stop - 1) // size + 1]
        cells = (pages[:, None] * size + np.arange(size)).ravel()
        return cells[start % size :][: stop - start]

    def pieces(self, start: int, stop: int, cost: ReadCost) -> Iterator[Piece]:
        """The keys at positions [start, stop), cut into long runs in place and gathers of bounded size."""
        runs = self._runs(start, stop)
        if cost.in_place and len(runs) == 1:
            yield runs[0]
            return
        at = loose = start
        for first, last in runs:
            length = last - first
            if cost.in_place and length >= cost.direct_tokens:
                yield from self._gathers(loose, at, cost.gather_tokens)
                yield first, last
                loose = at + length
            at += length
        yield from self._gathers(loose, stop, cost.gather_tokens)

    def _gathers(self, start: int, stop: int, limit: int) -> Iterator[Piece]:
        count = -(-(stop - start) // limit)
        for i in range(count):
            yield self.piece(start + (stop - start) * i // count, start + (stop - start) * (i + 1) // count)

    def _runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Numbers of positions [start, stop) as maximal runs of adjacent ones."""
        size = self.page_size
        if stop <= start:
            return []
        pages = self.table[start // size : (stop - 1) // size + 1]
        breaks = [0, *(np.flatnonzero(pages[1:] - pages[:-1] != 1) + 1).tolist(), len(pages)]
        spans = pairwise(breaks)
        runs = [(int(pages[a]) * size, (int(pages[b - 1]) + 1) * size) for a, b in spans]
        runs[0] = (runs[0][0] + start % size, runs[0][1])
        runs[-1] = (runs[-1][0], runs[-1][1] - (-stop) % size)
        return runs
