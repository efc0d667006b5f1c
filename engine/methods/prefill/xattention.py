"""xattention: blocks by the sums of their antidiagonals (XAttention, arXiv 2503.16428).

Every `stride` tokens one score per antidiagonal stands for stride² products; a softmax over them gives each
block of `tile` queries and `tile` keys its share of the attention. Beside what is always read, a tile reads
the fewest blocks that reach `mass` together with it, for each query head.

As published it forces the first block and the diagonal; here that is `sink_size` and the local part, and
what they hold counts. The cost of choosing is 1 / (2 * stride) of dense attention.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.blocks import candidates, covering_blocks, spans_of
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings, gate
from headway.engine.selection.settings import Count, Positive, ServersOwn
from headway.kernels.antidiagonal import antidiagonal_mass


class Settings(PrefillSettings):
    """A block is `tile` queries by `tile` keys."""

    method: Literal["xattention"] = "xattention"
    dense_below: Count = gate(32_768)
    stride: Annotated[Positive, ServersOwn] = Field(
        16, description="Tokens that share a score; a divisor of tile, 1: exact masses."
    )
    mass: float = Field(
        0.9, gt=0, le=1.01, description="Share of a tile's estimated attention to read; above 1: everything."
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.tile % self.stride:
            raise ValueError(f"stride must divide tile = {self.tile}, not be {self.stride}")
        return self


class Method(PrefillMethod[Settings]):
    """The fewest blocks for each query head and tile."""

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        """Spans of a tile."""
        settings, spec, tile = self.settings, chunk.spec, self.settings.tile
        mass = antidiagonal_mass(
            query, chunk.key_cache, chunk.plan, tile, settings.stride, scale=spec.scale, softcap=spec.softcap
        )
        allowed = candidates(chunk, settings, tile, mass.shape[-1])
        return PrefillSelection(spans_of(covering_blocks(mass, allowed, settings.mass), tile), tile)
