"""Some of a chunk's rows, by position: those that select, and a plan of their own for them."""

from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.kernels.paged_attention import AttentionPlan, plan


def selecting_rows(chunk: ChunkView, settings: PrefillSettings) -> range:
    """Positions of the whole tiles that neither the dense beginning nor the dense tail makes read all."""
    tail = chunk.num_prompt - settings.dense_tail
    starts = range(chunk.start, chunk.end, settings.tile)
    some = [at for at in starts if at >= settings.dense_below and at + settings.tile <= tail]
    return range(some[0], some[-1] + settings.tile) if some else range(chunk.start, chunk.start)


def plan_of(chunk: ChunkView, rows: range) -> AttentionPlan:
    """The chunk's plan as if it had brought only the tokens at the positions `rows`, and none were behind."""
    pages, device = chunk.plan.host_tables[0], chunk.plan.device
    return chunk.plan.memo(
        ("rows", rows), lambda: plan([len(rows)], [rows.stop], [pages], chunk.page_size, device)
    )
