"""h2o: heavy hitters, the tokens with most attention so far, and the latest ones (H2O, arXiv 2306.14048).

Every token gathers the attention that all queries give it, those of the prompt included. Each KV head keeps
the heaviest tokens beside sinks and window, within the budget; when a new token comes, the lightest one goes
and is never read again. Its pages stay where they are; what is saved is reading them.

- The published code is for one sequence without grouped queries; here a group's heads add up their attention
  for one list (inference).
- The paper has no sinks; ours are always read.
- The whole prompt must be watched, so nothing of it is taken from the prefix cache, and its prefill computes
  all scores a second time.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection import token_list
from headway.engine.selection.attention_mass import attention_mass
from headway.engine.selection.choose import strongest
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings


class Settings(BudgetSettings):
    """A larger window leaves less of the budget to heavy hitters; the paper halves it."""

    method: Literal["h2o"] = "h2o"
    mass: None = Field(None, description="What is kept depends on the budget only.")


class Method(DecodeMethod[Settings]):
    """Heavy hitters of each KV head."""

    sees_all = True
    degrades: ClassVar[bool] = True

    def layer_bytes(self, spec: LayerSpec, context: int) -> int:
        """Lists with the weights of their tokens."""
        return token_list.list_bytes(self.settings, spec.num_kv_heads, context)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Tokens, one list per KV head."""
        lens = layer.step.kv_lens.view(-1, 1, 1)
        numbers, weights = self._before(layer)
        newest = lens.expand(-1, numbers.shape[1], -1)
        kept, weights = self._heaviest(torch.cat((numbers, newest), -1), pad(weights, (0, 1)), layer)
        layer.put("numbers", kept)
        layer.put("weights", weights + _attention(query, kept, layer))
        return DecodeSelection(kept - 1, 1, (kept > 0).sum((1, 2)) // kept.shape[1])

    def observe(self, query: Tensor, lse: Tensor, layer: LayerView) -> None:
        """Add up a chunk's attention."""
        each = attention_mass(query, lse, layer)
        mass = each.view(layer.spec.num_kv_heads, -1, each.shape[1]).sum(1)
        before = layer.get("prompt")
        if before is not None:
            mass[:, : before.shape[-1]] += before[0]
        layer.put("prompt", mass.unsqueeze(0))

    def _before(self, layer: LayerView) -> tuple[Tensor, Tensor]:
        """Tokens, counted from 1 (0: none), and their weights, before this step's token comes."""
        prompt = layer.get("prompt")
        if prompt is not None and prompt.numel():
            # Tokens between the prompt and the gate come without weight.
            weights = pad(prompt, (0, max(layer.plan.host_kv_lens) - 1 - prompt.shape[-1]))
            numbers = torch.arange(1, weights.shape[-1] + 1, device=prompt.device, dtype=torch.int32)
            numbers = torch.where(numbers < layer.step.kv_lens.view(-1, 1, 1), numbers, 0)
            kept, lasting = self._heaviest(numbers.expand(-1, weights.shape[1], -1), weights, layer)
            layer.keep("numbers", kept, layer.step.fresh)
            layer.keep("weights", lasting, layer.step.fresh)
            layer.put("prompt", prompt[..., :0])
        before = layer.get("numbers"), layer.get("weights")
        assert before[0] is not None
        assert before[1] is not None
        return before[0], before[1]

    def _heaviest(self, numbers: Tensor, weights: Tensor, layer: LayerView) -> tuple[Tensor, Tensor]:
        settings, lens = self.settings, layer.step.kv_lens.view(-1, 1, 1)
        forced = (numbers <= settings.sink_size) | (numbers > lens - settings.window_size)
        strengths = weights.masked_fill(forced, torch.inf).masked_fill(numbers == 0, -torch.inf)
        picked = strongest(strengths, layer, settings, unit=1)
        at = picked.clamp_min(0).long()
        return (
            torch.where(picked >= 0, numbers.gather(-1, at), 0),
            torch.where(picked >= 0, weights.gather(-1, at), 0.0),
        )


def _attention(query: Tensor, numbers: Tensor, layer: LayerView) -> Tensor:
    """What the queries [B, Hq, Dk] give to the tokens `numbers`, fp32 [B, Hkv, M], summed over a group."""
    spec, size = layer.spec, layer.page_size
    tokens = (numbers - 1).clamp_min(0).long()
    pages = layer.plan.block_table.long().gather(1, (tokens // size).flatten(1)).view_as(tokens)
    heads = torch.arange(spec.num_kv_heads, device=query.device).view(-1, 1)
    keys = layer.key_cache[pages, tokens % size, heads].float()
    grouped = query.float().reshape(len(query), spec.num_kv_heads, -1, query.shape[2])
    scores = (grouped @ keys.transpose(-1, -2)) * spec.scale
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = scores.masked_fill((numbers == 0).unsqueeze(2), -torch.inf)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    if spec.sinks is not None:
        lse = torch.logaddexp(lse, spec.sinks.float().view(spec.num_kv_heads, -1, 1))
    return torch.exp(scores - lse).sum(2)
