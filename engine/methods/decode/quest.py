"""quest: pages by the upper bound of their scores (Quest, arXiv 2406.10774).

A page's channel-wise minimum and maximum bound every q·k in it; the pages with the highest bounds are read.
Under grouped queries the bound of a KV head is the maximum over its query heads; the published kernels are
for MHA only.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings, Count
from headway.engine.sidecars import Sidecar
from headway.kernels.unit_scores import bound_query, unit_scores

BOUNDS = Sidecar("bounds")


class Settings(BudgetSettings):
    """Larger budgets read more pages."""

    method: Literal["quest"] = "quest"
    dense_layers: Count = Field(2, description="The first layers, which always read everything.")


class Method(DecodeMethod[Settings]):
    """Top pages of each KV head, every step."""

    def sidecars(self) -> frozenset[Sidecar]:
        """Channel-wise bounds."""
        return frozenset({BOUNDS})

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Pages, one list per KV head."""
        scores = unit_scores(
            bound_query(query), layer.sidecars[BOUNDS], layer.plan, scale=layer.spec.scale, reduce="max"
        )
        return choose(scores, layer, self.settings, layer.page_size)
