"""The fewest units of a row that hold enough: where cumulative mass ends a list."""

import torch
from torch import Tensor


def fewest(weights: Tensor, wanted: Tensor | float, least: int = 0) -> Tensor:
    """bool like `weights`: of each row the fewest units whose weights add up to what is wanted, or all.

    Args:
        weights: fp32 [..., N], negative where there is no unit. Of equal ones the earlier is taken first.
        wanted: a number, or [..., 1]; a row that wants nothing gets none.
        least: units that are taken in any case, as far as there are so many.
    """
    ranked, order = weights.sort(stable=True, dim=-1, descending=True)
    before = ranked.clamp_min(0.0).cumsum(-1) - ranked
    taken = before < wanted
    if least:
        taken |= torch.arange(ranked.shape[-1], device=ranked.device) < least
    taken &= ranked >= 0
    return torch.empty_like(taken).scatter_(-1, order, taken)


def lacking(mass: Tensor, allowed: Tensor, share: Tensor | float) -> Tensor:
    """[..., 1]: what allowed units must add to all others, to hold `share` of each row's mass [..., N]."""
    return share * mass.sum(-1, keepdim=True) - mass.masked_fill(allowed, 0.0).sum(-1, keepdim=True)
