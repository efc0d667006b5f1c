"""anchor: single keys whose scores come near what is read anyway (AnchorAttention, arXiv 2505.23520).

A first pass reads the sinks and everything from a super-block's start on. What it finds is the anchor: an
earlier key is read in a second pass, by all rows of the super-block, if the mean query of any of its tiles
scores it at most `theta` below the tile's mean anchor. How much is read follows from the prompt.

Other than published:
- The anchor is the logarithm of the first pass's sum of exponentials, not its largest score, so never below
  it, and above it by at most the logarithm of the keys that it read. At an equal theta fewer keys are read;
  theta says how small a key's weight is beside all that the first pass read: below e^-theta, it is left out.
- The first pass and the scan are exact complements: sinks and the window before the super-block belong to
  the first, all keys in between to the second. The code reads some keys twice and others never.
- A part of a super-block at the prompt's end is treated as a whole one; the code reads everything there.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.chunk_rows import plan_of, selecting_rows
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.forced import attend_selection
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings, gate
from headway.engine.selection.settings import Count, Positive, ServersOwn
from headway.kernels.margin_columns import margin_columns
from headway.kernels.tile_attention import tile_attention


class Settings(PrefillSettings):
    """A larger theta reads more keys."""

    method: Literal["anchor"] = "anchor"
    dense_below: Count = gate(16_384)
    theta: float = Field(
        12.0, description="How far below the anchor a key may score and still be read, in natural logarithms."
    )
    step: Annotated[Positive, ServersOwn] = Field(
        8,
        description="Tiles of a super-block, which share a list of keys and read the super-block whole; "
        "published with 16, too many tokens at once for `scheduler.max_step_tokens` as it is by default.",
    )


class Method(PrefillMethod[Settings]):
    """Two passes per super-block, the second continuing the first."""

    @property
    def granule(self) -> int:
        """A super-block."""
        return self.settings.step * self.settings.tile

    def attend(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """The first pass over all rows, the second over those that select."""
        settings, spec = self.settings, chunk.spec
        starts = chunk.tile_starts(settings.tile)
        local = (starts - starts % self.granule - settings.window_size).clamp_min(0).unsqueeze(0)
        out, lse = attend_selection(query, chunk, PrefillSelection(local_from=local), settings)
        selecting = selecting_rows(chunk, settings)
        for start in range(chunk.start, chunk.end, self.granule):
            rows = range(max(start, selecting.start), min(start + self.granule, selecting.stop))
            between = range(settings.sink_size, start - settings.window_size)
            if not rows or not between:
                continue
            here = slice(rows.start - chunk.start, rows.stop - chunk.start)
            kept = self._near_anchor(query[here], lse[here], chunk, between)
            columns = _positions(kept, between.start)
            if not columns.shape[-1]:
                continue
            chunk.count(kept.sum() * len(rows))
            out[here], lse[here] = tile_attention(
                query[here], chunk.key_cache, chunk.value_cache, plan_of(chunk, rows), settings.tile,
                scale=spec.scale, columns=columns, softcap=spec.softcap,
                initial=(out[here], lse[here]),
            )  # fmt: skip
        return out, lse

    def _near_anchor(self, query: Tensor, lse: Tensor, chunk: ChunkView, between: range) -> Tensor:
        """bool [Hq, keys]: which keys at the positions `between` the rows [R, Hq, Dk] read."""
        tile, softcap = self.settings.tile, chunk.spec.softcap
        pooled = query.reshape(-1, tile, *query.shape[1:]).mean(1, dtype=torch.float32)
        limits = lse.view(-1, tile, query.shape[1]).mean(1) - self.settings.theta
        if softcap is not None:  # what the limits are before it
            limits = softcap * torch.atanh((limits / softcap).clamp(-1, 1))
        return margin_columns(
            pooled.to(query.dtype), limits, chunk.key_cache, chunk.plan, between.start, between.stop,
            scale=chunk.spec.scale,
        )  # fmt: skip


def _positions(kept: Tensor, start: int) -> Tensor:
    """Where bool [H, N] is True, + start, ascending: int32 [H, 1, N], or as few as will do on a CPU."""
    rank = kept.cumsum(-1, dtype=torch.int32)
    width = int(rank[:, -1].max()) if kept.device.type == "cpu" else kept.shape[-1]
    listed = torch.full((len(kept), width + 1), -1, dtype=torch.int32, device=kept.device)
    place = torch.where(kept, rank - 1, width).long()
    positions = torch.arange(start, start + kept.shape[-1], dtype=torch.int32, device=kept.device)
    return listed.scatter_(1, place, positions.expand_as(kept))[:, None, :width]
