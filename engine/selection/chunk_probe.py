"""The probe of prompt-global methods: what a chunk's last queries attend to, exactly."""

from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_settings import ChunkSettings
from headway.engine.selection.settings import Positive, ServersOwn
from headway.kernels.last_queries import last_queries


class ProbeSettings(ChunkSettings):
    """Settings of methods that choose for a whole chunk by its last queries."""

    chunk: Annotated[Positive, ServersOwn] = Field(
        1024, description="Tokens whose last queries choose for all; a multiple of tile."
    )
    probe: Annotated[Positive, ServersOwn] = Field(
        64, description="Last queries that choose; they cost probe / (2 * chunk) of dense attention."
    )

    @model_validator(mode="after")
    def _whole_tiles(self) -> Self:
        if self.chunk % self.tile:
            raise ValueError(f"chunk must be a multiple of tile = {self.tile}, not {self.chunk}")
        return self


def probe(query: Tensor, chunk: ChunkView, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The chunk's last queries [R, Hq, D], at most `rows`, and their sums by `last_queries`, each [Hq, N]."""
    spec, last = chunk.spec, query[-rows:]
    mass = last_queries(
        last, chunk.key_cache, chunk.plan, scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks
    )
    return last, *mass
