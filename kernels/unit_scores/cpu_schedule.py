"""How a CPU reads a table's rows for a decode group: host numbers only, shared by all layers of a kind."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan, Numbers

DIRECT_BYTES = 128 * 1024  # a run of adjacent pages of at least this size is worth a call of its own
TILE_BYTES = 1024 * 1024  # gathered at once; more would leave the CPU's cache before it is read
SHORT_BYTES = 64 * 1024  # a sequence with no more than this costs less gathered than called for
TOGETHER_BYTES = 2 * 1024 * 1024  # of all sequences gathered together


class Run(NamedTuple):
    """Units [first, first + units) of a sequence, whole pages read where they lie: `page` and the next."""

    first: int
    units: int
    page: int


class Tile(NamedTuple):
    """Units [first, first + units) of a sequence, whole pages to be gathered."""

    first: int
    units: int
    pages: Tensor  # int64


class ShortRows(NamedTuple):
    """Every sequence of a group of short ones, padded to N units."""

    table_rows: Tensor  # int64 [B * Hkv * N]: rows of the table seen as [num_pages * units * Hkv, D]
    beyond: Tensor | None  # bool [B, 1, N]: units that a sequence does not have


class Schedule(NamedTuple):
    width: int  # N
    scored: list[int]  # units of each sequence
    pieces: list[list[Run | Tile]]  # of each sequence; together they cover its pages


def short_rows(plan: AttentionPlan, table: Tensor) -> ShortRows | None:
    """None where each sequence by itself is faster, or the table's rows are not evenly spaced."""
    _, units, num_kv_heads, dim = table.shape
    if plan.num_tokens == 1 or not table.is_contiguous():
        return None
    key = ("unit_scores short", units, num_kv_heads, dim)
    return plan.memo(key, lambda: _short_rows(plan, units, num_kv_heads, 4 * num_kv_heads * dim))


def schedule(plan: AttentionPlan, table: Tensor) -> Schedule:
    _, units, num_kv_heads, dim = table.shape
    page_stride, unit_stride, _, dim_stride = table.stride()
    in_place = table.dtype == torch.float32 and dim_stride == 1 and page_stride == units * unit_stride
    page_bytes = 4 * units * num_kv_heads * dim
    key = ("unit_scores", units, page_bytes, in_place)
    return plan.memo(key, lambda: _schedule(plan, units, page_bytes, in_place))


def _schedule(plan: AttentionPlan, units: int, page_bytes: int, in_place: bool) -> Schedule:
    pieces = [list(_pieces(pages, units, in_place, page_bytes)) for pages in plan.host_tables]
    return Schedule(units * plan.max_pages, _scored(plan, units), pieces)


def _scored(plan: AttentionPlan, units: int) -> list[int]:
    return [-(-kv_len * units // plan.page_size) for kv_len in plan.host_kv_lens]


def _pieces(pages: Numbers, units: int, in_place: bool, page_bytes: int) -> Iterator[Run | Tile]:
    ends = np.flatnonzero(pages[1:] - pages[:-1] != 1) + 1
    if in_place and len(ends) == 0:
        yield Run(0, len(pages) * units, int(pages[0]))
        return
    edges = np.concatenate(([0], ends, [len(pages)]))
    long = np.flatnonzero(np.diff(edges) * page_bytes >= DIRECT_BYTES)
    loose = 0  # the first page that no piece covers yet
    for run in long.tolist() if in_place else ():
        start, stop = edges[run : run + 2].tolist()
        yield from _tiles(pages, loose, start, units, page_bytes)
        yield Run(start * units, (stop - start) * units, int(pages[start]))
        loose = stop
    yield from _tiles(pages, loose, len(pages), units, page_bytes)


def _tiles(pages: Numbers, start: int, stop: int, units: int, page_bytes: int) -> Iterator[Tile]:
    most = max(1, TILE_BYTES // page_bytes)
    for first, last in pairwise([*range(start, stop, most), stop]):
        yield Tile(first * units, (last - first) * units, torch.from_numpy(pages[first:last].copy()))


def _short_rows(plan: AttentionPlan, units: int, num_kv_heads: int, unit_bytes: int) -> ShortRows | None:
    batch, width = plan.num_tokens, units * plan.max_pages
    if width * unit_bytes > min(SHORT_BYTES, TOGETHER_BYTES // batch):
        return None
    pages = np.zeros((batch, width // units), dtype=np.int64)  # page 0 always exists
    for row, own in zip(pages, plan.host_tables, strict=True):
        row[: len(own)] = own
    slots = (pages[:, :, None] * units + np.arange(units)).reshape(batch, 1, width)
    table_rows = slots * num_kv_heads + np.arange(num_kv_heads)[:, None]  # [B, Hkv, N]
    beyond = np.arange(width) >= np.array(_scored(plan, units))[:, None]
    mask = torch.from_numpy(beyond).unsqueeze(1) if beyond.any() else None
    return ShortRows(torch.from_numpy(table_rows.ravel()), mask)
