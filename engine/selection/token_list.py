"""Token lists read for several steps: remembered with each token's weight, joined by newer tokens."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.selection.choose import choose, strongest
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings


def remember(scores: Tensor, layer: LayerView, settings: BudgetSettings, rows: Tensor) -> None:
    """Choose the tokens of the sequences `rows` (bool [B]) as `choose` does, and remember them.

    Args:
        scores: fp32 [B, Hs, N], -inf behind a sequence's end; overwritten.
    """
    weights = scores.clone()
    chosen = choose(scores, layer, settings, unit=1)
    keep(chosen, weights.gather(-1, chosen.indices.clamp_min(0).long()), layer, rows)


def keep(chosen: DecodeSelection, weights: Tensor, layer: LayerView, rows: Tensor) -> None:
    """Remember token lists of the sequences `rows` (bool [B]), and each token's weight, fp32 like them."""
    # The stack fills up with zeros, so a zero must mean that there is no token.
    layer.keep("numbers", chosen.indices + 1, rows)
    layer.keep("weights", weights, rows)
    layer.keep("length", layer.step.kv_lens, rows)


def list_bytes(settings: BudgetSettings, lists: int, context: int) -> int:
    """What `keep` remembers of a sequence of `context` tokens, for so many lists of a layer."""
    most = max(settings.budget, math.ceil(context * (settings.fraction or 0)))
    return lists * most * (torch.int32.itemsize + torch.float32.itemsize) + torch.int32.itemsize


def outgrown(layer: LayerView, settings: BudgetSettings) -> Tensor:
    """bool [B]: sequences without a list, or with one that misses tokens which have left the window since."""
    length = layer.get("length")
    if length is None:
        return torch.ones_like(layer.step.fresh)
    return layer.step.kv_lens - length > settings.window_size


def within_budget(layer: LayerView, settings: BudgetSettings) -> DecodeSelection:
    """The remembered lists and the window of this step; the weakest of a list give way to the window."""
    numbers, weights = _remembered(layer)
    lens = layer.step.kv_lens.view(-1, 1, 1)
    window = lens + torch.arange(-settings.window_size, 0, device=lens.device, dtype=torch.int32)
    window = window.expand(-1, numbers.shape[1], -1)
    older = (numbers > 0) & (numbers <= window[..., :1])
    strengths = torch.where(older, weights, -torch.inf)
    strengths.masked_fill_(older & (numbers <= settings.sink_size), torch.inf)
    strengths = torch.cat((strengths, torch.where(window >= 0, torch.inf, -torch.inf)), -1)
    picked = strongest(strengths, layer, settings, unit=1)
    tokens = torch.cat((numbers - 1, window), -1).gather(-1, picked.clamp_min(0).long())
    indices = torch.where(picked >= 0, tokens, -1)
    return DecodeSelection(indices, 1, (picked >= 0).sum((1, 2)) // picked.shape[1])


def with_all_newer(layer: LayerView, most: int) -> DecodeSelection:
    """The remembered lists and every token since they were made, of which there are at most `most`."""
    numbers, _ = _remembered(layer)
    length = layer.get("length")
    assert length is not None
    listed = (numbers > 0).sum(-1, keepdim=True)
    place = torch.arange(numbers.shape[-1] + most, device=numbers.device, dtype=torch.int32)
    newer = length.view(-1, 1, 1) - listed + place
    tokens = torch.where(place < listed, pad(numbers - 1, (0, most)), newer)
    there = tokens < layer.step.kv_lens.view(-1, 1, 1)
    indices = torch.where(there, tokens, -1).int()
    return DecodeSelection(indices, 1, there.sum((1, 2)) // numbers.shape[1])


def _remembered(layer: LayerView) -> tuple[Tensor, Tensor]:
    numbers, weights = layer.get("numbers"), layer.get("weights")
    assert numbers is not None
    assert weights is not None
    return numbers, weights
