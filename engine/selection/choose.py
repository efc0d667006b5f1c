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
    return pick(scores, forced[:, : scores.shape[-1]].unsqueeze(1), layer, settings, unit)


def pick(
    scores: Tensor, forced: Tensor, layer: LayerView, settings: BudgetSettings, unit: int
) -> DecodeSelection:
    """The best places of each row beside the forced ones, all within budget and mass.

    Args:
        scores: as for `choose`, at any N units; -inf where there is none.
        forced: bool that broadcasts to them, False where there is no unit.

    Returns:
        Places in a row of `scores`, ascending.
    """
    logits = scores.clone() if settings.mass is not None else scores
    indices = strongest(scores.masked_fill_(forced, math.inf), layer, settings, unit)
    if settings.mass is not None:
        indices = _covering(indices, logits, scores, settings.mass)
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


def _covering(indices: Tensor, logits: Tensor, scores: Tensor, mass: float) -> Tensor:
    """Drop the weakest chosen units as long as the rest covers `mass` of the whole row; never forced ones."""
    chosen = indices >= 0
    at = indices.clamp_min(0).long()
    total = torch.logsumexp(logits, -1, keepdim=True)
    weight = torch.where(chosen, torch.exp(logits.gather(-1, at) - total), 0.0)
    forced = chosen & scores.gather(-1, at).isposinf()
    kept = chosen & (fewest(weight, mass) | forced)
    # Ascending order with the holes at the end: a hole sorts behind every index.
    last = torch.iinfo(indices.dtype).max
    packed = torch.where(kept, indices, last).sort(-1).values
    return torch.where(packed == last, -1, packed)
