"""From cheap scores of units to the best tokens: a shortlist of units, whose tokens are ranked exactly."""

import math
from collections.abc import Callable
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
) -> tuple[DecodeSelection, Callable[[], Tensor]]:
    """The best tokens of the `tokens` tokens in the best units, forced ones first, within budget and mass.

    Args:
        query: [B, Hq, Dk].
        scores: fp32 [B, Hkv, N] of units of `unit` tokens, -inf behind a sequence's end; overwritten.
        active: bool [B], the sequences that get a list; None: all.

    Returns:
        The selection, and what gives the exact scores of what it holds, fp32 like its indices.
    """
    spec = layer.spec
    always_read = layer.step.forced(unit, settings.sink_size, settings.window_size)
    scores.masked_fill_(always_read.unsqueeze(1), math.inf)
    most, limits = _most_units(layer, settings, unit, -(-tokens // unit))
    units = top_k(scores, most, None if limits is None else limits.expand(scores.shape[:2]))
    exact = listed_scores(
        query, layer.key_cache, layer.plan, units, unit,
        scale=spec.scale, softcap=spec.softcap, active=active,
    )  # fmt: skip
    forced = _forced_places(layer, settings, unit, most, limits) & (exact > -math.inf)
    picked = pick(exact.clone(), forced, layer, settings, unit=1)
    places = picked.indices.clamp_min(0).long()
    inside = torch.arange(unit, dtype=torch.int32, device=units.device)
    listed = (units.unsqueeze(-1) * unit + inside).flatten(2).gather(-1, places)
    selection = replace(picked, indices=torch.where(picked.indices >= 0, listed, -1))
    return selection, lambda: exact.gather(-1, places)


def _most_units(
    layer: LayerView, settings: BudgetSettings, unit: int, count: int
) -> tuple[int, Tensor | None]:
    """Units in a shortlist at most: `count`, or as many as may be read if those are more.

    And each sequence's own limit, int64 [B, 1], where they differ.
    """
    width, limits = limits_of(layer, settings, unit)
    return max(count, width), None if limits is None else limits.clamp_min(count).unsqueeze(1)


def _forced_places(
    layer: LayerView, settings: BudgetSettings, unit: int, most: int, limits: Tensor | None
) -> Tensor:
    """bool [B, 1, most * unit]: where sinks and window stand among the tokens of the listed units.

    A shortlist is ascending and holds their units: sinks are its first tokens, the window is its last ones.
    """
    sinks, window = settings.sink_size, settings.window_size

    def build() -> Tensor:
        lens = layer.step.kv_lens.unsqueeze(1)
        units = -(-lens // unit)
        tokens = lens - (units - units.clamp_max(most if limits is None else limits)) * unit
        place = torch.arange(most * unit, device=lens.device)
        forced = ((place < sinks) | (place >= tokens - window)) & (place < tokens)
        return forced.unsqueeze(1)

    return layer.plan.memo(("forced places", sinks, window, unit, most, settings.fraction), build)
