"""quest: runs of tokens by the upper bound of their scores (Quest, arXiv 2406.10774).

The channel-wise minimum and maximum of 16 keys bound every q·k among them; the runs with the highest bounds
are read. The paper calls them pages; ours are parts of a page, so that its size is free.
Under grouped queries the bound of a KV head is the maximum over its query heads; the published kernels are
for MHA only.
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
from headway.engine.selection.settings import BudgetSettings, Count, Positive
from headway.engine.sidecars import Sidecar
from headway.kernels.unit_scores import bound_query, unit_scores


class Settings(BudgetSettings):
    """Larger budgets read more pages."""

    method: Literal["quest"] = "quest"
    unit: Positive = Field(16, description="Tokens that one bound stands for; at most a page.")
    dense_layers: Count = Field(2, description="The first layers, which always read everything.")


class Method(DecodeMethod[Settings]):
    """Top units of each KV head, every step."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._bounds = Sidecar("bounds", unit=settings.unit)

    def sidecars(self) -> frozenset[Sidecar]:
        """Channel-wise bounds."""
        return frozenset({self._bounds})

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """The unit must divide a page."""
        check_unit(self.settings.unit, page_size)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Units, one list per KV head."""
        table = layer.sidecars[self._bounds]
        scores = unit_scores(bound_query(query), table, layer.plan, scale=layer.spec.scale, reduce="max")
        return choose(scores, layer, self.settings, layer.page_size // table.shape[1])
