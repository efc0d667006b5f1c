"""tokenselect: one list of tokens for all heads, by soft vote (TokenSelect, arXiv 2411.02886).

Each query head spreads one vote over the tokens that are not read anyway, by the softmax of its exact
scores; the tokens with most votes are read by all heads. The list is kept while the layer's queries, all
heads side by side, stay similar to those that it was made for (the paper's Selection Cache).

Other than published:
- The vote is in fp32 (the code keeps scores, softmax and sum in bf16), and query head h votes with KV head
  h // group (the code takes h mod KV heads, wrong under grouped queries).
- The Selection Cache runs (the code's branch cannot), decided on the device for each sequence. Tokens newer
  than the list are always read, the weakest of the list giving way; the code loses those that leave the
  window. A list is made anew at the latest when all that were in the window then have left it.
- Tokens keep their positions. The paper renumbers what is read, which extends models beyond the length they
  were trained for, but makes keys depend on what was read; and it selects during prefill. So queries turn
  here with the position as well, and hits are fewer at the same similarity.
- The paper reads 2,048 tokens beside 128 sinks and a window of 512; here the budget holds all three.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection import refresh, token_list
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.mass import log_mass
from headway.engine.selection.settings import BudgetSettings
from headway.kernels.unit_scores import unit_scores

MOST = torch.finfo(torch.float32).max


class Settings(BudgetSettings):
    """A higher similarity makes new lists more often; each costs reading all keys."""

    method: Literal["tokenselect"] = "tokenselect"
    similarity: float = Field(
        0.9, ge=-1, le=2, description="Cosine of two queries up to which a new list is made; 1: always."
    )
    scaled: bool = Field(
        False,
        description="Vote with the layer's own softmax. The published vote leaves out the factor on q·k "
        "(1/√head size), so that each head votes for fewer tokens.",
    )


class Method(DecodeMethod[Settings]):
    """A list of the whole layer, kept until the queries turn."""

    def layer_bytes(self, spec: LayerSpec, context: int) -> int:
        """A list, and the queries that it was made for."""
        kept = token_list.list_bytes(self.settings, 1, context)
        return kept + refresh.query_bytes(spec.num_heads * spec.key_dim)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Tokens, one list for all heads."""
        side_by_side = query.flatten(1).unsqueeze(1)
        turned = refresh.turned(side_by_side, layer, self.settings.similarity)
        outdated = turned | token_list.outgrown(layer, self.settings)
        refresh.count(layer, outdated)
        if refresh.anybody(outdated):
            refresh.keep_query(side_by_side, layer, outdated)
            chosen = self._vote(query, layer, outdated)
            if not refresh.anybody(~outdated):
                return chosen
        return token_list.within_budget(layer, self.settings)

    def _vote(self, query: Tensor, layer: LayerView, rows: Tensor) -> DecodeSelection:
        """Make new lists for the sequences `rows` (bool [B]) and remember them."""
        settings, spec = self.settings, layer.spec
        scale, softcap = (spec.scale, spec.softcap) if settings.scaled else (1.0, None)
        scores = unit_scores(query, layer.key_cache, layer.plan, scale=scale, softcap=softcap, active=rows)
        forced = layer.step.forced(1, settings.sink_size, settings.window_size)
        votes = log_mass(scores.masked_fill_(forced.unsqueeze(1), -torch.inf), heads=1, reduce="sum")
        chosen = choose(votes, layer, settings, unit=1)
        # What is in the window now gives way last once it has left it; it had no votes.
        weights = votes.gather(-1, chosen.indices.clamp_min(0).long()).clamp_max_(MOST)
        token_list.keep(chosen, weights, layer, rows)
        return chosen
