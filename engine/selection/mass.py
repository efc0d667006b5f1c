"""Softmax mass of every unit, from the logits of a probe."""

from typing import Literal

import torch
from torch import Tensor

FLOOR = -100.0
"""Just below the logarithm of the smallest positive fp32 number."""


def log_mass(
    logits: Tensor, heads: int, reduce: Literal["sum", "max"], sinks: Tensor | None = None
) -> Tensor:
    """Logarithm of the softmax mass of every unit, reduced over the query heads that share a list.

    Args:
        logits: fp32 [B, Hq, N], -inf at the same units for all heads of a list.
        heads: lists, a divisor of Hq.
        sinks: one more logit [Hq] in each head's softmax.

    Returns:
        fp32 [B, heads, N], -inf where the logits are. A sum that underflows is `FLOOR`, so that whatever
        has a logit can be chosen.
    """
    by_list = logits.reshape(len(logits), heads, -1, logits.shape[-1])
    share: Tensor | None = None
    if sinks is not None:
        lse = torch.logsumexp(logits, -1, keepdim=True)
        share = (lse - torch.logaddexp(lse, sinks.float().unsqueeze(-1))).view(*by_list.shape[:3], 1)
    if reduce == "max":
        each = by_list.log_softmax(-1)
        mass = (each if share is None else each + share).amax(2)
    else:
        each = by_list.softmax(-1)
        mass = (each if share is None else each * share.exp()).sum(2).log_().clamp_min_(FLOOR)
    return mass.masked_fill_(by_list[:, :, 0].isneginf(), -torch.inf)
