"""dhsa: chunks of varying length by key similarity (DHSA, arXiv 2510.24606).

Keys are cut into chunks where neighbouring keys differ most. A chunk's vector is the mean of its keys times
the square root of its length: a long one weighs more than a short one, but not in proportion. The tile's mean
query scores it, its tokens inherit the score, and the best `budget` tokens are read.

Other than published:
- The cosine of the mean keys on both sides stands in for the trained boundary predictor.
- The dips are ranked inside each `tile` tokens, not over the whole prompt, and the budget does not grow with
  the prompt: a row chooses by nothing later than its tile.
- Boundaries lie at multiples of `unit`.
- Each query head has its own list. The code takes the mean over all heads, and one list.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cosine_similarity

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.blocks import best_blocks, candidates, pooled_scores, spans_of
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.selection.settings import Positive, ServersOwn
from headway.kernels.top_k import top_k


class Settings(PrefillSettings):
    """Larger budgets read more chunks."""

    method: Literal["dhsa"] = "dhsa"
    budget: Positive = Field(2048, description="Tokens a tile reads beside sinks and window.")
    unit: Annotated[Positive, ServersOwn] = Field(
        8, description="Chunks begin at multiples of so many tokens; a divisor of tile."
    )
    chunks: Annotated[Positive, ServersOwn] = Field(
        8, description="Chunks that each `tile` tokens are cut into."
    )

    @model_validator(mode="after")
    def _whole_units(self) -> Self:
        if self.tile % self.unit:
            raise ValueError(f"unit must divide tile = {self.tile}, not be {self.unit}")
        return self


class Method(PrefillMethod[Settings]):
    """The best chunks for each query head and tile."""

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        """Spans of a unit; neighbouring ones make up a chunk."""
        settings, unit = self.settings, self.settings.unit
        units = self._unit_means(chunk)
        vectors, owner = chunk_vectors(units, settings.tile // unit, settings.chunks)
        scores = pooled_scores(query, vectors, settings.tile, chunk.spec.scale)[..., owner]
        allowed = candidates(chunk, settings, unit, len(owner))
        best = best_blocks(scores, allowed, -(-settings.budget // unit))
        return PrefillSelection(spans_of(best, unit), unit)

    def _unit_means(self, chunk: ChunkView) -> Tensor:
        """fp32 [n, Hkv, D] of the units before the chunk's last tile: no tile has candidates beyond it."""
        settings = self.settings
        stop = (chunk.end - 1) // settings.tile * settings.tile
        keys = chunk.keys(0, stop)
        return keys.reshape(stop // settings.unit, settings.unit, *keys.shape[1:]).mean(
            1, dtype=torch.float32
        )


def chunk_vectors(units: Tensor, per_tile: int, chunks: int) -> tuple[Tensor, Tensor]:
    """Cut every `per_tile` units into chunks where the cosine of neighbouring means is lowest.

    Args:
        units: fp32 [n, Hkv, D], means of equally many keys each; n a multiple of `per_tile`.

    Returns:
        Vectors fp32 [chunks, Hkv, D], the mean of each chunk's units times the root of their number, and the
        chunk of each unit, int64 [n].
    """
    tiles, most = len(units) // per_tile, min(chunks, per_tile)
    whole = units.reshape(tiles, per_tile, units.shape[1] * units.shape[2])
    begins = torch.zeros(tiles, per_tile, dtype=torch.int64, device=units.device)
    begins[:, 0] = 1
    if most > 1:
        dips = -cosine_similarity(whole[:, 1:], whole[:, :-1], dim=-1)
        begins.scatter_(1, top_k(dips.contiguous(), most - 1).long() + 1, 1)
    place = begins.cumsum(1) - 1  # the chunk of each unit, in its tile
    number = torch.arange(most, device=units.device)
    members = (place.unsqueeze(1) == number.unsqueeze(1)).float()  # [tiles, chunks, units]
    vectors = members @ whole / members.sum(-1, keepdim=True).clamp_min(1).sqrt()
    owner = place + most * torch.arange(tiles, device=units.device).unsqueeze(1)
    return vectors.view(tiles * most, *units.shape[1:]), owner.flatten()
