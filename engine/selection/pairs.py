"""How many pairs of a query and a key tile_attention reads, counted on the device without waiting for it."""

import torch
from torch import Tensor

from headway.kernels.paged_attention import AttentionPlan


def pairs(
    plan: AttentionPlan,
    heads: int,
    tile: int,
    local_from: Tensor | None,
    sink_size: int,
    spans: Tensor | None = None,
    span: int = 1,
    columns: Tensor | None = None,
) -> Tensor:
    """int64 scalar: pairs over all query heads, for arguments as of `tile_attention`."""
    starts, rows = plan.memo(("tile rows", tile), lambda: _tiles(plan, tile))
    unlike = max((len(lists) for lists in (local_from, spans, columns) if lists is not None), default=1)
    room = starts.expand(unlike, -1)
    if local_from is not None:
        room = torch.minimum(_each_head(local_from, unlike), starts)
        whole = rows * starts + rows * (rows + 1) // 2  # what rows read that read everything
        total = (whole - rows * (room - room.clamp_max(sink_size))).sum()
    else:
        total, sink_size = starts.new_zeros(()), 0
    if spans is not None:
        first = _each_head(spans, unlike).long()
        end = torch.minimum(first + span, room.unsqueeze(-1))
        keys = (end - first.clamp_min(sink_size)).clamp_min(0).masked_fill(first < 0, 0)
        total = total + (keys.sum(-1) * rows).sum()
    if columns is not None:
        total = total + _listed(columns, room, rows, sink_size)
    return total * (heads // unlike)


def _listed(columns: Tensor, room: Tensor, rows: Tensor, sink_size: int) -> Tensor:
    """Pairs of single keys: those at `sink_size` and beyond, below each tile's room."""
    heads, lists = len(room), columns.shape[1]
    each = -(-len(rows) // lists)
    listed = _each_head(columns, heads)
    total = rows.new_zeros(())
    for place in range(each):  # one tile of every list at a time: no copy of the lists for each tile
        limit = room[:, place::each].unsqueeze(-1)
        some = listed[:, : limit.shape[1]]
        keys = ((some >= max(sink_size, 0)) & (some < limit)).sum(-1)
        total = total + (keys * rows[place::each]).sum()
    return total


def _tiles(plan: AttentionPlan, tile: int) -> tuple[Tensor, Tensor]:
    """Each tile's first position and its rows, int64 [tiles]."""
    end = plan.host_kv_lens[0]
    starts = torch.arange(end - plan.num_tokens, end, tile, device=plan.device)
    return starts, (end - starts).clamp_max(tile)


def _each_head(numbers: Tensor, heads: int) -> Tensor:
    return numbers.repeat_interleave(heads // len(numbers), 0)
