"""headway: our own. A shortlist by bounds, ranked by exact scores, kept while the query stays where it was.

Of all training-free probes, bounds on short runs of keys find most for what they read, but they are loose:
the runs with the highest bounds must be read whole to hold what an exact top-k would. So the bounds only
make a shortlist (Quest, arXiv 2406.10774), exact scores choose from it, and what is read is as short as
with an exact top-k. A list may serve further steps until the query, averaged over the heads, has turned
(Recycled Attention, arXiv 2411.05787), decided for each layer and sequence.

Measured on needle at 32,768 tokens of nothing but facts, budget 512: of 37 answers that dense decoding
gave, runs of 8, 16, 32 and 64 with a shortlist of 4,096 tokens kept 37, 31, 20 and 12; without exact
scores, reading all 4,096 tokens of the shortlist, runs of 8 kept 37 and runs of 16 kept 32. With bounds
of the mean of a group's queries, whose product reads memory as fast as a sum does, instead of the best of
them, all 91 of 91 answers stayed (six haystacks), and 99 % of the mass that lists catch (at 8,192).
"""

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import RunMethod, RunSettings
from headway.engine.selection import refresh, token_list
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import Positive
from headway.engine.selection.shortlist import shortlisted
from headway.kernels.unit_scores import bound_query


class Settings(RunSettings):
    """A longer shortlist finds more, a higher similarity renews lists more often."""

    method: Literal["headway"] = "headway"
    budget: Positive = Field(1024, description="Tokens a KV head reads in a step, sinks and window included.")
    shortlist: Positive = Field(4096, description="Tokens whose exact scores are looked at.")
    unit: Positive = Field(8, description="Tokens that one bound stands for; at most a page.")
    probe: Literal["mean", "each"] = Field(
        "mean", description="Bounds are of the mean of a group's queries, or of each of them: slower."
    )
    similarity: float = Field(
        1.0, ge=-1, le=1, description="Cosine of two queries above which a list is kept; 1: never."
    )


class Method(RunMethod[Settings]):
    """Tokens, one list per KV head."""

    kind = "bounds"

    def layer_bytes(self, spec: LayerSpec, context: int) -> int:
        """Lists that are kept, and the query that they were made for."""
        if self.settings.similarity >= 1:
            return 0
        lists = token_list.list_bytes(self.settings, spec.num_kv_heads, context)
        return lists + refresh.query_bytes(spec.key_dim)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """A new list where the query has turned, the old one with what is newer elsewhere."""
        if self.settings.similarity >= 1:
            return self._ranked(query, layer)[0]
        renewed = token_list.outgrown(layer, self.settings) | refresh.turned(
            query, layer, self.settings.similarity
        )
        refresh.count(layer, renewed)
        if refresh.anybody(renewed):
            selection, scores = self._ranked(query, layer, renewed)
            token_list.keep(selection, scores(), layer, renewed)
            refresh.keep_query(query, layer, renewed)
            if not refresh.anybody(~renewed):
                return selection
        return token_list.within_budget(layer, self.settings)

    def _ranked(
        self, query: Tensor, layer: LayerView, rows: Tensor | None = None
    ) -> tuple[DecodeSelection, Callable[[], Tensor]]:
        """New lists of the sequences `rows` (bool [B]), None: of all; and what gives their tokens' scores."""
        probe = query
        if self.settings.probe == "mean":
            probe = query.reshape(len(query), layer.spec.num_kv_heads, -1, query.shape[2]).mean(2)
        bounds, unit = self.scores(bound_query(probe), layer, active=rows)
        return shortlisted(query, bounds, layer, self.settings, unit, self.settings.shortlist, rows)
