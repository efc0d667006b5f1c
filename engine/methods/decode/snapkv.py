"""snapkv: the tokens that the end of the prompt looks at, chosen once (SnapKV, arXiv 2404.14469).

The prompt's last queries vote for the tokens before them by their attention, summed over the queries and
pooled along the sequence. Each KV head keeps those with most votes beside sinks and window; the list is
never made anew, and every later token is read, so that a step reads the budget and what was generated.
What was not chosen at the end of the prompt is never read again.

The published code keeps a list for each query head. Under grouped queries the votes of a group are reduced
here, so that it shares one list: to their maximum, or to their mean as later ports do.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection import token_list
from headway.engine.selection.attention_mass import attention_mass
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.mass import FLOOR
from headway.engine.selection.settings import BudgetSettings

WIDTH_STEP = 64
"""Lists grow by this many places at a time, so that their shape seldom changes."""


class Settings(BudgetSettings):
    """The budget is that of the prompt; generated tokens come on top."""

    method: Literal["snapkv"] = "snapkv"
    observation: int = Field(32, ge=1, le=4096, description="Tokens at the end of the prompt that vote.")
    pool: Literal["mean", "max"] = Field("mean", description="How neighbours share their votes.")
    pool_radius: int = Field(2, ge=0, le=64, description="Neighbours on either side that share.")
    reduce: Literal["max", "mean"] = Field(
        "max", description="How the votes of a group's query heads make one list."
    )


class Method(DecodeMethod[Settings]):
    """A frozen list for each KV head."""

    degrades = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.observes = settings.observation
        window = max(settings.window_size, settings.observation)
        budget = max(settings.budget, settings.sink_size + window)
        self._prompt_settings = settings.model_copy(update={"window_size": window, "budget": budget})

    def layer_bytes(self, spec: LayerSpec, context: int) -> int:
        """The prompt's lists; votes end with the first step."""
        return token_list.list_bytes(self._prompt_settings, spec.num_kv_heads, context)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:  # noqa: ARG002
        """Tokens, one list per KV head."""
        for name in ("queries", "lses"):
            votes = layer.get(name)
            if votes is not None and votes.numel():
                layer.put(name, votes[:, :0])
        most = layer.plan.memo("tokens since the prompt", lambda: _most_generated(layer))
        return token_list.with_all_newer(layer, most)

    def observe(self, query: Tensor, lse: Tensor, layer: LayerView) -> None:
        """Vote with the prompt's last queries; they may come in parts, of which the last one decides."""
        queries, lses = _joined(layer, "queries", query), _joined(layer, "lses", lse)
        votes = attention_mass(queries, lses, layer)
        votes[:, -len(queries) :] = 0
        by_group = self._pooled(votes).view(layer.spec.num_kv_heads, -1, votes.shape[1])
        scores = by_group.amax(1) if self.settings.reduce == "max" else by_group.mean(1)
        scores = scores.log_().clamp_min_(FLOOR).unsqueeze(0)
        token_list.remember(scores, layer, self._prompt_settings, layer.step.fresh)

    def _pooled(self, votes: Tensor) -> Tensor:
        radius = self.settings.pool_radius
        pool = avg_pool1d if self.settings.pool == "mean" else max_pool1d
        pooled: Tensor = pool(votes, 2 * radius + 1, stride=1, padding=radius)
        return pooled


def _joined(layer: LayerView, name: str, rows: Tensor) -> Tensor:
    """What was seen before with `rows` [T, …] behind it; remembered."""
    before = layer.get(name)
    joined = rows if before is None else torch.cat((before[0], rows))
    layer.put(name, joined.unsqueeze(0))
    return joined


def _most_generated(layer: LayerView) -> int:
    """Tokens behind the prompt in the sequence that has most of them, rounded up."""
    members = zip(layer.step.stack.members, layer.plan.host_kv_lens, strict=True)
    most = max(length - member.observed for member, length in members)
    return -(-most // WIDTH_STEP) * WIDTH_STEP
