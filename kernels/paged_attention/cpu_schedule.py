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
SPLIT_TOKENS = 2048  # a decode shorter than this is not worth several threads

Piece = tuple[int, int] | Tensor  # slots [start, stop), or int64 slots to gather


class ReadCost(NamedTuple):
    """What the schedule must know of one layer's cache."""

    token_bytes: int  # K and V of one token
    in_place: bool  # slots are evenly spaced and of a dtype that is fast as it is
    flat: bool  # slots are evenly spaced
    num_kv_heads: int

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


class InPlace(NamedTuple):
    """Keys of one decode row: `splits` equal runs from slot `start` on, so that all cores have work."""

    row: int
    start: int
    length: int
    splits: int


class Gathered(NamedTuple):
    """Several decode rows' keys copied side by side, padded to one length."""

    rows: Tensor  # int64 [n]
    slots: Tensor  # int64 [n * length]
    length: int
    padding: Tensor | None  # [n, 1, 1, length], 0 or -inf


class DecodeSchedule(NamedTuple):
    in_place: list[InPlace]
    gathered: list[Gathered]
    part_rows: Tensor | None  # int64: the row of each part, of in_place, then gathered; None: part i is row i


def sequences(plan: AttentionPlan, flat: bool) -> tuple[list[Sequence], list[Sequence]]:
    """The batch's decodes and its longer chunks."""
    lens = zip(plan.host_q_lens, plan.host_kv_lens, plan.host_tables, strict=True)
    every = [Sequence(plan.rows(b), *of_b, plan.page_size, flat) for b, of_b in enumerate(lens)]
    return [one for one in every if one.q_len == 1], [one for one in every if one.q_len > 1]


def schedule_decodes(decodes: list[Sequence], window: int | None, cost: ReadCost) -> DecodeSchedule:
    in_place: list[InPlace] = []
    loose: list[tuple[int, Numbers]] = []  # (row, slots)
    for row, sequence in enumerate(decodes):
        start = 0 if window is None else max(0, sequence.kv_len - window)
        if len(decodes) > 1 and sequence.kv_len - start < cost.direct_tokens:
            loose.append((row, sequence.slots(start, sequence.kv_len)))
            continue
        for piece in sequence.pieces(start, sequence.kv_len, cost):
            if isinstance(piece, Tensor):
                loose.append((row, piece.numpy()))
            elif piece[1] - piece[0] >= cost.direct_tokens or len(decodes) == 1:
                in_place += _split(row, *piece, cost.num_kv_heads)
            else:
                loose.append((row, np.arange(*piece)))
    gathered = [_pad(group) for group in _groups(loose, cost.gather_tokens)]
    rows = [part.row for part in in_place for _ in range(part.splits)]
    for batch in gathered:
        rows += batch.rows.tolist()
    in_order = rows == list(range(len(decodes)))
    return DecodeSchedule(in_place, gathered, None if in_order else torch.tensor(rows))


def _split(row: int, start: int, stop: int, num_kv_heads: int) -> Iterator[InPlace]:
    splits = max(1, min(torch.get_num_threads() // num_kv_heads, (stop - start) // SPLIT_TOKENS))
    length = (stop - start) // splits
    yield InPlace(row, start, length, splits)
    if start + length * splits < stop:
        yield InPlace(row, start + length * splits, stop - start - length * splits, 1)


def _groups(loose: list[tuple[int, Numbers]], limit: int) -> Iterator[list[tuple[int, Numbers]]]:
    """Parts of like length together: at most a quarter of a group is padding."""
    group: list[tuple[int, Numbers]] = []
    for row, slots in sorted(loose, key=lambda part: -len(part[1])):
        if group and (len(slots) < 0.75 * len(group[0][1]) or len(group[0][1]) * (len(group) + 1) > limit):
            yield group
            group = []
        group.append((row, slots))
    if group:
        yield group


def _pad(group: list[tuple[int, Numbers]]) -> Gathered:
    """`group` begins with its longest part."""
    lengths = np.array([len(slots) for _, slots in group])
    padded = np.empty((len(group), lengths[0]), dtype=np.int64)
    for row, (_, slots) in zip(padded, group, strict=True):
        row[: len(slots)] = slots
        row[len(slots) :] = slots[0]  # a real slot of the same sequence, never one whose content is unknown
    padding = None
    if lengths[-1] < lengths[0]:
        beyond = np.arange(lengths[0]) >= lengths[:, None]
        hidden = np.where(beyond, np.float32("-inf"), np.float32(0))
        padding = torch.from_numpy(hidden)[:, None, None]
    rows = torch.tensor([row for row, _ in group])
    return Gathered(rows, torch.from_numpy(padded).view(-1), padded.shape[1], padding)
