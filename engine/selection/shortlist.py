"""From cheap scores of units to the best tokens: a shortlist of units, whose tokens are ranked exactly."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from headway.engine.selection.choose import limits_of, pick
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings
from headway.kernels.listed_scores import listed_scores
from headway.kernels.top_k import top_k


def shortlisted(
    query: Tensor,
    scores: Tensor,
    layer: LayerView,
    settings: BudgetSettings,
    unit: int,
    tokens: int,
    active: Tensor | None = None,
) -> tuple[DecodeSelection, Tensor]:
    """The best tokens of the `tokens` tokens in the best units, forced ones first, within budget and mass.

    Args:
        query: [B, Hq, Dk].
        scores: fp32 [B, Hkv, N] of units of `unit` tokens, -inf behind a sequence's end; overwritten.
        active: bool [B], the sequences that get a list; None: all.

    Returns:
        The selection, and the exact scores of what it holds, fp32 like its indices.
    """
    step, spec = layer.step, layer.spec
    forced = step.forced(unit, settings.sink_size, settings.window_size)
    scores.masked_fill_(forced.unsqueeze(1), math.inf)
    units = _best_units(scores, layer, settings, unit, -(-tokens // unit))
    exact = listed_scores(
        query, layer.key_cache, layer.plan, units, unit,
        scale=spec.scale, softcap=spec.softcap, active=active,
    )  # fmt: skip
    inside = torch.arange(unit, dtype=torch.int32, device=units.device)
    token = (units.unsqueeze(-1) * unit + inside).flatten(2)
    latest = step.kv_lens.view(-1, 1, 1) - settings.window_size
    always_read = ((token < settings.sink_size) | (token >= latest)) & ~exact.isneginf()
    picked = pick(exact.clone(), always_read, layer, settings, unit=1)
    at = picked.indices.clamp_min(0).long()
    listed = torch.where(picked.indices >= 0, token.gather(-1, at), -1)
    return replace(picked, indices=listed), exact.gather(-1, at)


def _best_units(scores: Tensor, layer: LayerView, settings: BudgetSettings, unit: int, count: int) -> Tensor:
    """The `count` best units of each row, or as many as it may have at most if those are more."""
    width, limits = limits_of(layer, settings, unit)
    if limits is not None:
        limits = limits.clamp_min(count).unsqueeze(1).expand(scores.shape[:2])
    return top_k(scores, max(count, width), limits)
