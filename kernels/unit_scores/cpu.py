"""unit_scores on a CPU: products of a group's queries with the rows where they lie, or gathered.

Measured on Zen 3, one thread: a product of 4 x 32 by 32 x N reads rows at 16 GB/s from the CPU's cache and at
6 from memory, and each further call costs as much as 64 KiB; hence `cpu_schedule`.
"""

import numpy as np
import torch
from torch import Tensor

from headway.kernels.cpu_workers import share_out
from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.unit_scores import Reduction
from headway.kernels.unit_scores.cpu_schedule import Run, Schedule, ShortRows, Tile, schedule, short_rows

LARGE = 1024 * 1024  # numbers of a table's rows that do not stay in the CPU's cache
MINUS_INFINITY = float("-inf")
UNREAD = torch.zeros(1, 1, 1)  # where beta is 0; a product that takes alpha saves the call that scales


def unit_scores(
    query: Tensor, table: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    reduce: Reduction, active: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, _, dim = query.shape
    groups = query.float().reshape(batch, table.shape[2], -1, dim)
    wanted = list(range(batch)) if active is None else active.nonzero()[:, 0].tolist()
    short = short_rows(plan, table) if 4 * len(wanted) > batch else None
    if short is not None:
        scores = _reduce(_score_together(groups, table, short, scale), softcap, reduce)
        if short.beyond is not None:
            scores.masked_fill_(short.beyond, MINUS_INFINITY)
        if active is not None and len(wanted) < batch:
            scores.masked_fill_(active.logical_not()[:, None, None], MINUS_INFINITY)
        return scores

    way = schedule(plan, table)
    scores = _reduce(_score_one_by_one(groups, table, way, wanted, scale), softcap, reduce)
    for row, b in zip(scores, wanted, strict=True) if min(way.scored) < way.width else ():
        row[:, way.scored[b] :] = MINUS_INFINITY
    if active is None or len(wanted) == batch:
        return scores
    every = scores.new_full((batch, *scores.shape[1:]), MINUS_INFINITY)
    return every.index_copy_(0, torch.tensor(wanted, dtype=torch.int64), scores)


def _reduce(scores: Tensor, softcap: float | None, reduce: Reduction) -> Tensor:
    """scores `[B, Hkv, G, N]` -> `[B, Hq or Hkv, N]`"""
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if reduce == "none":
        return scores.flatten(1, 2)
    return scores.amax(2) if reduce == "max" else scores.mean(2)


def _score_together(groups: Tensor, table: Tensor, short: ShortRows, scale: float) -> Tensor:
    """groups `[B, Hkv, G, D]` -> `[B, Hkv, G, N]` in one product."""
    batch, num_kv_heads, group_size, dim = groups.shape
    rows = table.view(-1, dim).index_select(0, short.table_rows).float()
    rows = rows.view(batch * num_kv_heads, -1, dim)
    scores = torch.baddbmm(UNREAD, groups.flatten(0, 1), rows.transpose(1, 2), beta=0, alpha=scale)
    return scores.view(batch, num_kv_heads, group_size, -1)


def _score_one_by_one(
    groups: Tensor, table: Tensor, way: Schedule, wanted: list[int], scale: float
) -> Tensor:
    """groups `[B, Hkv, G, D]` -> `[wanted, Hkv, G, N]`; pages that a sequence does not have are unwritten."""
    only = way.pieces[wanted[0]] if len(wanted) == 1 else []
    if len(only) == 1 and only[0].units == way.width:
        return _product(groups[wanted[0]], _rows(table, only[0]), scale).unsqueeze(0)
    scores = torch.empty(len(wanted), *groups.shape[1:3], way.width)
    for row, b in enumerate(wanted):
        for piece in way.pieces[b]:
            _product(groups[b], _rows(table, piece), scale, scores[row].narrow(2, piece.first, piece.units))
    return scores


def _product(queries: Tensor, rows: Tensor, scale: float, into: Tensor | None = None) -> Tensor:
    """queries `[Hkv, G, D]` and rows `[Hkv, D, N]` -> `[Hkv, G, N]`."""
    if queries.shape[1] > 1 or rows.numel() < LARGE:
        return torch.baddbmm(UNREAD, queries, rows, beta=0, alpha=scale, out=into)
    scores = rows.new_empty(len(rows), 1, rows.shape[2]) if into is None else into
    alone, table, out = (queries[:, 0] * scale).numpy(), rows.numpy(), scores[:, 0].numpy()

    def score(units: range) -> None:
        some = slice(units.start, units.stop)
        # NumPy reads them in memory's order, as fast as a sum does; a product of one row, at a third of that.
        np.einsum("hd,hdn->hn", alone, table[..., some], out=out[:, some])

    share_out(score, range(rows.shape[2]))
    return scores


def _rows(table: Tensor, piece: Run | Tile) -> Tensor:
    """`[Hkv, D, units]`"""
    if isinstance(piece, Tile):
        return table.index_select(0, piece.pages).float().flatten(0, 1).permute(1, 2, 0)
    page_stride, unit_stride, head_stride, _ = table.stride()
    size, strides = (table.shape[2], table.shape[3], piece.units), (head_stride, 1, unit_stride)
    return table.as_strided(size, strides, table.storage_offset() + piece.page * page_stride)
