"""longheads: runs of tokens by one attention-weighted vector for each KV head (LongHeads, arXiv 2402.10685).

A run's vector is what its keys agree on after attending to each other (see `engine/chunk_keys.py`, where the
deviation from the published chunk key, an inference, is explained); a head's score for a run is its query's
product with it. Each KV head reads its own runs, the maximum over its query heads deciding; the published
code is for MHA only. The paper's chunks hold 256 tokens and 4,096 tokens are read; it renumbers what is read
and selects during prefill too, where here tokens keep their positions and the prompt is read whole.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.methods.decode.base import RunMethod, RunSettings
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import Positive


class Settings(RunSettings):
    """Larger budgets read more runs."""

    method: Literal["longheads"] = "longheads"
    unit: Positive = Field(64, description="Tokens that one vector stands for; at most a page.")


class Method(RunMethod[Settings]):
    """Top units of each KV head, every step."""

    kind = "chunk_key"

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Units, one list per KV head."""
        scores, unit = self.scores(query, layer)
        return choose(scores, layer, self.settings, unit)
