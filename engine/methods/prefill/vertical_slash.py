"""vertical_slash: the columns and diagonals that a chunk's last queries attend to most (MInference).

The pattern of MInference 1.0 (arXiv 2407.02490) that its published configurations use for every head. Per
query head the probe's exact attention, summed over columns and over diagonals, is ranked; all rows of the
chunk read the best of both. A diagonal is read exactly, at whatever offset it begins.

Other than published: the probe are the last queries of each chunk, not of the prompt; diagonals are chosen
in bands of 16, which cost no more than one; those that not all of the probe's rows meet, or that owe their
mass to the sinks, are not ranked. Counts per head, found offline there, are one setting for all here. (On
needle columns catch more attention per key that is read than diagonals do.)
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.methods.prefill.base import ChunkMethod
from headway.engine.selection.chunk_probe import ProbeSettings, probe
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import gate
from headway.engine.selection.settings import Count
from headway.engine.selection.slashes import (
    band_cells,
    bands_of,
    last_choosing_tile,
    selection_of,
    span_of,
    useful_bands,
    useful_columns,
)
from headway.kernels.top_k import top_k


class Settings(ProbeSettings):
    """A column costs one key for each row, a band of diagonals about `tile`."""

    method: Literal["vertical_slash"] = "vertical_slash"
    dense_below: Count = gate(16_384)
    columns: Count = Field(2048, description="Keys that every row reads beside sinks and window.")
    slashes: Count = Field(512, description="Diagonals beyond the window, rounded up to bands of 16.")


class Method(ChunkMethod[Settings]):
    """The best columns and diagonals for each query head."""

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        """Spans of a band's cells, and the columns beside them."""
        settings, tile = self.settings, self.settings.tile
        span, last_tile = span_of(tile), last_choosing_tile(chunk, settings)
        if last_tile is None:
            return PrefillSelection()
        last, vertical, slash = probe(query, chunk, settings.probe)
        bands = bands_of(slash, span)
        best_columns = _best(vertical, useful_columns(chunk, settings, last_tile), settings.columns)
        best_bands = _best(
            bands, useful_bands(chunk, settings, len(last), span), -(-settings.slashes // span)
        )
        cells = band_cells(best_bands, chunk, tile, last_tile // span)
        most = best_bands.shape[1] * (tile // span + 1)
        return selection_of(cells, best_columns, chunk, settings, most)


def _best(mass: Tensor, useful: Tensor, count: int) -> Tensor:
    """int32 [H, K], the `count` useful units with most mass, padded with -1."""
    if count == 0:
        return torch.full((len(mass), 1), -1, dtype=torch.int32, device=mass.device)
    return top_k(mass.masked_fill(~useful, -torch.inf), min(count, mass.shape[1]))
