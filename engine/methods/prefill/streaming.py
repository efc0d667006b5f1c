"""streaming: sinks and a window of the latest tokens.

The Λ-shaped mask of StreamingLLM (arXiv 2309.17453, LM-Infinite), in prefill. With a dense tail, as by
default, it is the tri-shape of SCBench (arXiv 2412.10319): only the prompt's last tokens see what lies
between sinks and window.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings, gate
from headway.engine.selection.settings import Count


class Settings(PrefillSettings):
    """The window is `window_size` tokens before each tile of queries."""

    method: Literal["streaming"] = "streaming"
    dense_below: Count = gate(2048)
    window_size: Count = Field(1024, description="Tokens before a tile of queries, always read.")


class Method(PrefillMethod[Settings]):
    """Selects nothing beside what is always read."""

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:  # noqa: ARG002
        """Nothing more."""
        return PrefillSelection()
