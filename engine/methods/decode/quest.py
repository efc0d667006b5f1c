"""quest: runs of tokens by the upper bound of their scores (Quest, arXiv 2406.10774).

The channel-wise minimum and maximum of 16 keys bound every q·k among them; the runs with the highest bounds
are read. The paper calls them pages; ours are parts of a page, so that its size is free.
Under grouped queries the bound of a KV head is the maximum over its query heads; the published kernels are
for MHA only.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.methods.decode.base import RunMethod, RunSettings
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import Count, Positive
from headway.kernels.unit_scores import bound_query


class Settings(RunSettings):
    """Larger budgets read more pages."""

    method: Literal["quest"] = "quest"
    unit: Positive = Field(16, description="Tokens that one bound stands for; at most a page.")
    dense_layers: Count = Field(2, description="The first layers, which always read everything.")


class Method(RunMethod[Settings]):
    """Top units of each KV head, every step."""

    kind = "bounds"

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Units, one list per KV head."""
        scores, unit = self.scores(bound_query(query), layer)
        return choose(scores, layer, self.settings, unit)
