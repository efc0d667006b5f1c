"""From cheap scores of units to the best tokens: a shortlist of units, whose tokens are ranked exactly."""

from collections.abc import Callable

import torch
from torch import Tensor

from headway.engine.selection.choose import covering, limits_of, packed
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings
from headway.kernels.shortlist import Shortlisted, shortlist


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
    most_units, unit_limits = limits_of(layer, settings, unit)
    most_tokens, token_limits = limits_of(layer, settings, 1)
    least = -(-tokens // unit)  # so many units are listed, or as many as may be read if those are more
    if unit_limits is not None:
        unit_limits = unit_limits.clamp_min(least)
    found = shortlist(
        query, scores, layer.key_cache, layer.plan, unit,
        units=max(least, most_units), unit_limits=unit_limits, tokens=most_tokens, token_limits=token_limits,
        sink_size=settings.sink_size, window_size=settings.window_size,
        scale=spec.scale, softcap=spec.softcap, active=active,
    )  # fmt: skip
    if settings.mass is not None:
        found = _covering(found, layer, settings, settings.mass)
    elif settings.fraction is None:
        return DecodeSelection(found.tokens, 1), lambda: _scores_of(found)
    counts = (found.tokens >= 0).sum((1, 2)) // found.tokens.shape[1]
    return DecodeSelection(found.tokens, 1, counts), lambda: _scores_of(found)


def _covering(found: Shortlisted, layer: LayerView, settings: BudgetSettings, mass: float) -> Shortlisted:
    """Without the weakest tokens, as long as the rest covers `mass` of the shortlist; never forced ones."""
    tokens = found.tokens
    share = torch.exp(_scores_of(found) - torch.logsumexp(found.scores, -1, keepdim=True))
    latest = layer.step.kv_lens.view(-1, 1, 1) - settings.window_size
    kept = covering(tokens >= 0, share, (tokens < settings.sink_size) | (tokens >= latest), mass)
    return found._replace(tokens=packed(tokens, kept), places=packed(found.places, kept))


def _scores_of(found: Shortlisted) -> Tensor:
    return found.scores.gather(-1, found.places.clamp_min(0).long())
