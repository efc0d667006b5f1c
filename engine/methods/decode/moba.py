"""moba: runs of tokens by the mean of their keys (MoBA, arXiv 2502.13189).

A query head's score for a run is its product with the mean of the run's keys; the runs with the highest
scores are read, the one that holds the query always. MoBA gates every query head for itself, in blocks of
512 to 4,096 tokens, and is trained with it, last layers dense. Here it is applied untrained, to smaller runs
and, unless told otherwise, with one list for the heads of a group.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod, check_unit
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings, Positive
from headway.engine.sidecars import Sidecar
from headway.kernels.unit_scores import Reduction, unit_scores


class Settings(BudgetSettings):
    """Larger budgets read more runs."""

    method: Literal["moba"] = "moba"
    unit: Positive = Field(64, description="Tokens that one mean stands for; at most a page.")
    reduce: Reduction = Field(
        "max",
        description="Over the query heads of a KV group; none: a list for each query head, as published.",
    )


class Method(DecodeMethod[Settings]):
    """Top units, every step."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._mean = Sidecar("mean", unit=settings.unit)

    def sidecars(self) -> frozenset[Sidecar]:
        """Mean keys."""
        return frozenset({self._mean})

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """The unit must divide a page."""
        check_unit(self.settings.unit, page_size)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Units, one list per KV head or query head."""
        table, spec = layer.sidecars[self._mean], layer.spec
        scores = unit_scores(query, table, layer.plan, scale=spec.scale, reduce=self.settings.reduce)
        return choose(scores, layer, self.settings, layer.page_size // table.shape[1])
