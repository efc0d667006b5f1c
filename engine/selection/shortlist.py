"""From cheap scores of units to the best tokens: a shortlist of units, whose tokens are ranked exactly."""

import math

import torch
from torch import Tensor

from headway.engine.selection.choose import limits_of
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings
from headway.kernels.listed_scores import listed_scores
from headway.kernels.top_k import top_k


def shortlisted(
    query: Tensor, scores: Tensor, layer: LayerView, settings: BudgetSettings, unit: int, tokens: int
) -> tuple[DecodeSelection, Tensor]:
    """The best tokens of the `tokens` tokens in the best units, forced ones first, all within the budget.

    Args:
        query: [B, Hq, Dk].
        scores: fp32 [B, Hkv, N] of units of `unit` tokens, -inf behind a sequence's end; overwritten.

    Returns:
        The selection, and the exact scores of what it holds, fp32 like its indices.
    """
    step, spec = layer.step, layer.spec
    forced = step.forced(unit, settings.sink_size, settings.window_size)
    scores.masked_fill_(forced.unsqueeze(1), math.inf)
    width, limits = limits_of(layer, settings, unit=1)
    always, _ = limits_of(layer, settings, unit)
    units = top_k(scores, max(-(-max(tokens, width) // unit), always))
    exact = listed_scores(
        query, layer.key_cache, layer.plan, units, unit, scale=spec.scale, softcap=spec.softcap
    )
    token = (units.unsqueeze(-1) * unit + torch.arange(unit, dtype=torch.int32, device=units.device)).flatten(
        2
    )
    latest = step.kv_lens.view(-1, 1, 1) - settings.window_size
    always_read = ((token < settings.sink_size) | (token >= latest)) & ~exact.isneginf()
    ranked = exact.masked_fill(always_read, math.inf)
    if limits is not None:
        limits = limits.unsqueeze(1).expand(ranked.shape[:2])
    picked = top_k(ranked, width, limits)
    at = picked.clamp_min(0).long()
    indices = torch.where(picked >= 0, token.gather(-1, at), -1)
    return DecodeSelection(indices, 1, None if limits is None else limits[:, 0]), exact.gather(-1, at)
