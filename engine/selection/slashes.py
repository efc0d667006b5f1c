"""Columns and diagonals as tiles of queries read them: exact spans at a fine grid, no key twice.

Diagonal o holds the key o tokens before each row. A band of `span` neighbouring diagonals meets a tile in the
same cells of `span` keys as a single one does, so bands are ranked: band q holds the offsets from
(q - 1) * span + 1 to q * span.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from headway.engine.selection.blocks import candidates
from headway.engine.selection.chunk_rows import selecting_rows
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.fewest import fewest, lacking
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.kernels.top_k import top_k

SPAN = 16


def span_of(tile: int) -> int:
    """Keys of a cell: divides the tile, so that all tiles of a chunk meet a band in the same way."""
    return math.gcd(SPAN, tile)


def bands_of(slash: Tensor, span: int) -> Tensor:
    """Sums [Hq, N] of diagonals added up to bands [Hq, Q]."""
    length = slash.shape[1]
    room = (-(length - 1)) % span
    padded = pad(slash, (span - 1, room))
    return padded.view(len(slash), -1, span).sum(-1)


def last_choosing_tile(chunk: ChunkView, settings: PrefillSettings) -> int | None:
    """Position of the last tile that selects, None if it has nothing to choose from."""
    rows = selecting_rows(chunk, settings)
    last = rows.stop - settings.tile
    return last if rows and last - settings.window_size > settings.sink_size else None


def useful_columns(chunk: ChunkView, settings: PrefillSettings, last_tile: int) -> Tensor:
    """bool [N]: behind the sinks, and before what the tile at `last_tile` reads anyway."""
    keys = torch.arange(chunk.end, device=chunk.plan.device)
    return (keys >= settings.sink_size) & (keys < last_tile - settings.window_size)


def useful_bands(chunk: ChunkView, settings: PrefillSettings, rows: int, span: int) -> Tensor:
    """bool [Q]: beyond the window, and met by all `rows` last queries, none of them in the sinks.

    The longest diagonals would look strong by the sinks' mass alone.
    """
    longest = torch.arange(0, chunk.end - 1 + span, span, device=chunk.plan.device)
    return (longest > settings.window_size) & (longest <= chunk.end - rows - settings.sink_size)


def covering(mass: Tensor, useful: Tensor, share: Tensor, least: int, most: int) -> Tensor:
    """Of each row the fewest useful units that hold, with all others, `share` of its mass.

    What is not useful is read anyway, or cannot be. Of equal masses the earlier unit is taken first.

    Args:
        mass: fp32 [H, N], at least 0.
        useful: bool [N].
        share: [H, 1]; above 1 takes all, 0 none.
        least, most: bounds on the units taken, as far as there are so many.

    Returns:
        int32 [H, K], padded with -1 anywhere.
    """
    best = top_k(mass.masked_fill(~useful, -torch.inf), max(1, min(most, mass.shape[1])))
    weight = mass.gather(-1, best.clamp_min(0).long()).masked_fill(best < 0, -1.0)
    return torch.where(fewest(weight, lacking(mass, useful, share), least), best, -1)


def band_cells(bands: Tensor, chunk: ChunkView, tile: int, count: int) -> Tensor:
    """bool [H, tiles, count]: cells of `span_of(tile)` keys, from the sequence's first, that bands meet.

    Args:
        bands: int32 [H, K], negative: none.
    """
    span = span_of(tile)
    reach = tile // span
    # Rows meet band q from q cells before their tile's start on, the last one up to `reach` - 1 cells later,
    # or one more where a band has diagonals that begin within a cell.
    farthest = -(-chunk.end // span) + reach + 1  # beyond every band
    named = torch.zeros(len(bands), farthest + 1, device=bands.device)
    named.scatter_(1, torch.where(bands >= 0, bands, farthest).long(), 1.0)
    named[:, farthest] = 0.0
    met = max_pool1d(named, reach + (span > 1), 1)  # at a distance: any band from there on that gets so near
    cells = torch.arange(count, device=bands.device)
    distance = (chunk.tile_starts(tile) // span).unsqueeze(1) - cells
    reached = met[:, distance.clamp(0, met.shape[1] - 1).long()] > 0
    return reached & (distance > 0)


def selection_of(
    cells: Tensor, columns: Tensor, chunk: ChunkView, settings: PrefillSettings, most: int
) -> PrefillSelection:
    """Cells as spans, and the columns that lie in none of a tile's cells.

    Args:
        cells: bool [H, tiles, C], of `span_of(settings.tile)` keys each.
        columns: int32 [H, M], below the last of the cells' keys; negative: none.
        most: cells that a tile has at most.
    """
    span = span_of(settings.tile)
    cells = cells & candidates(chunk, settings, span, cells.shape[-1])
    if cells.device.type == "cpu":
        most = int(cells.sum(-1).max())
        columns = columns.sort(descending=True).values[:, : int((columns >= 0).sum(-1).max())]
    listed = top_k(torch.where(cells, 0.0, -torch.inf), max(1, min(most, cells.shape[-1])))
    spans = torch.where(listed >= 0, listed * span, -1)
    each = columns.unsqueeze(1).expand(-1, cells.shape[1], -1)
    covered = cells.gather(-1, (each.clamp_min(0) // span).long())
    return PrefillSelection(spans, span, each.masked_fill(covered, -1))
