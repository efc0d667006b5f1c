"""moba: runs of tokens by the mean of their keys (MoBA, arXiv 2502.13189).

A query head's score for a run is its product with the mean of the run's keys; the runs with the highest
scores are read, the one that holds the query always. MoBA gates every query head for itself, in blocks of
512 to 4,096 tokens, and is trained with it, last layers dense. Here it is applied untrained, to smaller runs
and, unless told otherwise, with one list for the heads of a group.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.methods.decode.base import RunMethod, RunSettings
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import Positive
from headway.kernels.unit_scores import Reduction


class Settings(RunSettings):
    """Larger budgets read more runs."""

    method: Literal["moba"] = "moba"
    unit: Positive = Field(64, description="Tokens that one mean stands for; at most a page.")
    reduce: Reduction = Field(
        "max",
        description="Over the query heads of a KV group; none: a list for each query head, as published.",
    )


class Method(RunMethod[Settings]):
    """Top units, every step."""

    kind = "mean"

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Units, one list per KV head or query head."""
        scores, unit = self.scores(query, layer, self.settings.reduce)
        return choose(scores, layer, self.settings, unit)
