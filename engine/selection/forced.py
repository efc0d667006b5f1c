"""What a prefill selection always reads: sinks, window, diagonal, the dense beginning and the dense tail."""

import torch
from torch import Tensor

from headway.engine.selection.chunk_rows import selecting_rows
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.pairs import pairs
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.kernels.tile_attention import tile_attention


def attend_selection(
    query: Tensor, chunk: ChunkView, selection: PrefillSelection, settings: PrefillSettings
) -> tuple[Tensor, Tensor]:
    """Attention of a chunk's queries [T, Hq, Dk] over a selection and what is forced; out and lse [T, Hq]."""
    return attend_from(query, chunk, local_from(chunk, selection, settings), selection, settings)


def attend_from(
    query: Tensor, chunk: ChunkView, local: Tensor, selection: PrefillSelection, settings: PrefillSettings
) -> tuple[Tensor, Tensor]:
    """The same over sinks, spans, columns and what begins at `local`, int32 [H, tiles], and nothing else."""
    spec = chunk.spec
    chunk.count(
        pairs(
            chunk.plan, query.shape[1], settings.tile, local, settings.sink_size,
            selection.spans, selection.span, selection.columns,
        )
    )  # fmt: skip
    return tile_attention(
        query, chunk.key_cache, chunk.value_cache, chunk.plan, settings.tile,
        scale=spec.scale, local_from=local, sink_size=settings.sink_size,
        spans=selection.spans, span=selection.span, columns=selection.columns,
        softcap=spec.softcap, sinks=spec.sinks,
    )  # fmt: skip


def local_from(chunk: ChunkView, selection: PrefillSelection, settings: PrefillSettings) -> Tensor:
    """int32 [H, tiles]: from where on each tile reads everything up to its rows."""
    starts = chunk.tile_starts(settings.tile)
    local = (starts - settings.window_size).clamp_min(0)
    rows = selecting_rows(chunk, settings)
    dense = (starts < rows.start) | (starts >= rows.stop)
    local = torch.where(dense, 0, local).unsqueeze(0)
    return local if selection.local_from is None else torch.minimum(local, selection.local_from)
