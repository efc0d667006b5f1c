"""tokenselect: one list of tokens for a whole chunk, by soft vote (TokenSelect, arXiv 2411.02886).

Each query head spreads one vote over the tokens before the chunk, by the softmax of the scores of the chunk's
mean query; the tokens with most votes are read by all its rows and heads, beside the chunk itself.

Other than published:
- The vote is in fp32 (the code keeps scores, softmax and sum in bf16), and query head h votes with KV head
  h // group (the code takes h mod KV heads, wrong under grouped queries).
- Tokens keep their positions. The paper renumbers what is read, which extends models beyond the length they
  were trained for.
- The window stands before the chunk. The paper's ends with the chunk, which fills it: its first row sees no
  tokens just before it but those chosen.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.methods.prefill.base import ChunkMethod
from headway.engine.selection.chunk_rows import plan_of
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.mass import log_mass
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import ChunkSettings
from headway.engine.selection.settings import Positive, ServersOwn
from headway.kernels.top_k import top_k
from headway.kernels.unit_scores import unit_scores


class Settings(ChunkSettings):
    """Larger budgets read more tokens; smaller chunks choose more often."""

    method: Literal["tokenselect"] = "tokenselect"
    budget: Positive = Field(2048, description="Tokens that a chunk reads beside sinks, window and itself.")
    chunk: Annotated[Positive, ServersOwn] = Field(512, description="Tokens that share one list.")
    scaled: bool = Field(
        False,
        description="Vote with the layer's own softmax. The published vote leaves out the factor on q·k "
        "(1/√head size), so that each head votes for fewer tokens.",
    )


class Method(ChunkMethod[Settings]):
    """A list of the whole layer, made anew for every chunk."""

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        """Columns for all heads and tiles."""
        settings, spec = self.settings, chunk.spec
        stop = max(0, chunk.start - settings.window_size)
        local = torch.full_like(chunk.tile_starts(settings.tile), stop).unsqueeze(0)
        if stop <= settings.sink_size:
            return PrefillSelection(local_from=local)
        scale, softcap = (spec.scale, spec.softcap) if settings.scaled else (1.0, None)
        voter = query.mean(0, keepdim=True, dtype=torch.float32).to(query.dtype)
        before = plan_of(chunk, range(stop - 1, stop))
        scores = unit_scores(voter, chunk.key_cache, before, scale=scale, softcap=softcap)
        scores[..., : settings.sink_size] = -torch.inf
        scores[..., stop:] = -torch.inf
        votes = log_mass(scores, heads=1, reduce="sum")
        most = min(settings.budget, stop - settings.sink_size)
        return PrefillSelection(columns=top_k(votes, most), local_from=local)
