"""recycled: token lists that stay until the query turns (Recycled Attention, RefreshKV; arXiv 2411.05787).

Each KV head of a layer has a list of the tokens that one query gave most attention: probabilities, the
maximum over the group's heads, max-pooled along the sequence. Steps read the list and all newer tokens, the
weakest of the list giving way. Every `stride` steps a layer compares its query, averaged over the heads,
with the one of its last full step; if it has turned, the layer takes a full step: dense attention, and a new
list. The first list is that of the prompt's last token.

- Whether the paper compares queries before or after their rotation is not stated; here it is after
  (inference).
- The paper has neither sinks nor a window; ours are always read. It reads an eighth of the context:
  `fraction: 0.125`.
- A list is made anew at the latest when a token since has left the window, so that none is ever lost.
- No code is published; what is here follows the text of the paper.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import max_pool1d

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection import refresh, token_list
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.mass import log_mass
from headway.engine.selection.settings import BudgetSettings, Positive
from headway.kernels.unit_scores import unit_scores


class Settings(BudgetSettings):
    """A longer stride and a lower similarity read less and follow a turning query later."""

    method: Literal["recycled"] = "recycled"
    stride: Positive = Field(10, description="Steps between two looks at the query.")
    similarity: float = Field(
        0.85,
        ge=-1,
        le=2,
        description="Cosine of two queries up to which a layer takes a full step; 1: always.",
    )
    pool_radius: int = Field(
        3, ge=0, le=64, description="Neighbours on either side that a token lifts along."
    )
    full_output: bool = Field(
        True,
        description="A layer that makes a new list also attends to everything. False: it reads the old list, "
        "and the new one serves from the next step on; of the same quality in the paper.",
    )


class Method(DecodeMethod[Settings]):
    """A list for each KV head, layer by layer."""

    observes = 1

    def layer_bytes(self, spec: LayerSpec, context: int) -> int:
        """Lists, and the query that they were made for."""
        lists = token_list.list_bytes(self.settings, spec.num_kv_heads, context)
        return lists + refresh.query_bytes(spec.key_dim)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Tokens, one list per KV head; everything in a full step."""
        settings = self.settings
        lacking = token_list.outgrown(layer, settings)
        turned = refresh.every(layer, settings.stride) & refresh.turned(query, layer, settings.similarity)
        refresh.count(layer, lacking | turned)
        if settings.full_output:
            self._renew(query, layer, lacking | turned)
            return replace(token_list.within_budget(layer, settings), dense=lacking | turned)
        self._renew(query, layer, lacking)
        selection = token_list.within_budget(layer, settings)
        self._renew(query, layer, turned & ~lacking)
        return selection

    def observe(self, query: Tensor, lse: Tensor, layer: LayerView) -> None:  # noqa: ARG002
        """Make the first list."""
        self._renew(query, layer, layer.step.fresh)

    def _renew(self, query: Tensor, layer: LayerView, rows: Tensor) -> None:
        """Make new lists for the sequences `rows` (bool [B])."""
        if not refresh.anybody(rows):
            return
        spec, radius = layer.spec, self.settings.pool_radius
        logits = unit_scores(
            query, layer.key_cache, layer.plan, scale=spec.scale, softcap=spec.softcap, active=rows
        )
        mass = log_mass(logits, spec.num_kv_heads, "max", spec.sinks)
        pooled = max_pool1d(mass, 2 * radius + 1, stride=1, padding=radius)
        token_list.remember(pooled.masked_fill_(mass.isneginf(), -torch.inf), layer, self.settings, rows)
        refresh.keep_query(query, layer, rows)
