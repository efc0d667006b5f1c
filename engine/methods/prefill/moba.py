"""moba: blocks by the mean of their keys (MoBA, arXiv 2502.13189).

A block's score is the product of a query with the mean of the block's keys; the `top_k` blocks with the
highest scores are read, the one that holds the query always and counted among them. MoBA scores for each
token and query head, in blocks of 512 to 4,096 tokens, and is trained with it. Here it is applied untrained,
in smaller blocks, and the rows of a tile share their blocks: the tile's mean query scores. (On needle that
catches more attention than the maximum over the tile's own scores, raw or after a softmax.)
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.blocks import best_blocks, candidates, pooled_scores, spans_of
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings, gate
from headway.engine.selection.settings import Count, Positive, ServersOwn
from headway.engine.sidecars import Sidecar


class Settings(PrefillSettings):
    """`top_k * block` tokens are read beside sinks and window."""

    method: Literal["moba"] = "moba"
    dense_below: Count = gate(4096)
    block: Annotated[Positive, ServersOwn] = Field(
        64, description="Tokens that one mean stands for; parts of a page, or pages."
    )
    top_k: Positive = Field(32, description="Blocks that a tile reads, its own included.")


class Method(PrefillMethod[Settings]):
    """Top blocks for each query head and tile."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._mean = Sidecar("mean", unit=settings.block)

    def sidecars(self) -> frozenset[Sidecar]:
        """Mean keys."""
        return frozenset({self._mean})

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """Blocks must be whole parts of a page, or whole pages."""
        block = self.settings.block
        if page_size % block and block % page_size:
            raise ConfigError(
                f"block: must divide cache.page_size = {page_size} or be a multiple of it, not {block}"
            )

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        """Spans of a block, and each tile's own block up to its rows."""
        settings, block = self.settings, self.settings.block
        own = (chunk.tile_starts(settings.tile) // block * block).unsqueeze(0)
        if settings.top_k == 1:
            return PrefillSelection(local_from=own)
        means = self._means(chunk)
        allowed = candidates(chunk, settings, block, len(means), own)
        scores = pooled_scores(query, means, settings.tile, chunk.spec.scale)
        best = best_blocks(scores, allowed, settings.top_k - 1)
        return PrefillSelection(spans_of(best, block), block, local_from=own)

    def _means(self, chunk: ChunkView) -> Tensor:
        """[n, Hkv, D] of the n blocks that are complete."""
        table, block = chunk.sidecars[self._mean], self.settings.block
        rows = block * table.shape[1] // chunk.page_size  # of the table, to a block
        count = chunk.end // block
        means = chunk.rows_of(table, 0, count * rows)
        return means.reshape(count, rows, *means.shape[1:]).float().mean(1)
