"""From scores to a selection: forced units, budget, top-k, cumulative mass. The one place that does it."""

import math

import torch
from torch import Tensor

from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.fewest import fewest
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings
from headway.kernels.top_k import top_k


def choose(scores: Tensor, layer: LayerView, settings: BudgetSettings, unit: int) -> DecodeSelection:
    """The best units of each row beside the forced ones, all within budget and mass.

    Args:
        scores: fp32 [B, Hs, N] of units of `unit` tokens, -inf behind a sequence's end; overwritten.
            With `mass`, they must be logits of the softmax whose mass is meant.
    """
    forced = layer.step.forced(unit, settings.sink_size, settings.window_size)
    forced = forced[:, : scores.shape[-1]].unsqueeze(1)
    logits = scores.clone() if settings.mass is not None else scores
    indices = strongest(scores.masked_fill_(forced, math.inf), layer, settings, unit)
    if settings.mass is not None:
        at = indices.clamp_min(0).long()
        share = torch.exp(logits.gather(-1, at) - torch.logsumexp(logits, -1, keepdim=True))
        kept = covering(indices >= 0, share, scores.gather(-1, at).isposinf(), settings.mass)
        indices = packed(indices, kept)
    elif settings.fraction is None:
        return DecodeSelection(indices, unit)
    return DecodeSelection(indices, unit, (indices >= 0).sum((1, 2)) * unit // indices.shape[1])


def strongest(strengths: Tensor, layer: LayerView, settings: BudgetSettings, unit: int) -> Tensor:
    """Places of the strongest units of each row within the budget, int32 [B, Hs, M], ascending, then -1.

    Args:
        strengths: fp32 [B, Hs, N], inf where a unit must be read, -inf where there is none.
    """
    width, limits = limits_of(layer, settings, unit)
    if limits is not None:
        limits = limits.unsqueeze(1).expand(strengths.shape[:2])
    return top_k(strengths, width, limits)


def limits_of(layer: LayerView, settings: BudgetSettings, unit: int) -> tuple[int, Tensor | None]:
    """Units a row may have at most, and each sequence's own limit, int64 [B], where they differ."""
    # A window that begins inside a unit touches one more; without it, the tail would give way to the sinks.
    forced = -(-settings.sink_size // unit) + (settings.window_size + unit - 2) // unit + 1
    width = max(-(-settings.budget // unit), forced)
    if settings.fraction is None:
        return width, None
    plan, fraction = layer.plan, settings.fraction

    def build() -> tuple[int, Tensor]:
        # On the host alone: a device rounds otherwise, and a limit must be the same beside any other.
        limits = [max(width, math.ceil(length * fraction / unit)) for length in plan.host_kv_lens]
        return max(limits), torch.tensor(limits, device=plan.device)

    return plan.memo(("limits", width, fraction, unit), build)


def covering(chosen: Tensor, share: Tensor, forced: Tensor, mass: float) -> Tensor:
    """Of the chosen units, bool [B, Hs, M], forced ones and the fewest whose shares reach `mass`."""
    return chosen & (fewest(torch.where(chosen, share, 0.0), mass) | forced)


def packed(indices: Tensor, kept: Tensor) -> Tensor:
    """The ascending indices that are kept, ascending, then -1."""
    last = torch.iinfo(indices.dtype).max  # a hole sorts behind every index
    ascending = torch.where(kept, indices, last).sort(-1).values
    return torch.where(ascending == last, -1, ascending)
