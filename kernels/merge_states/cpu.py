"""merge_states on a CPU: one pass per part, no [P, T, H, D] temporaries."""

import torch
from torch import Tensor


def merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.logsumexp(lses, 0)
    empty = lses == float("-inf")
    weight = torch.exp(lses - lse).masked_fill_(empty, 0.0).unsqueeze(-1)
    out = torch.zeros(outs.shape[1:], dtype=torch.float32)
    for part, part_weight, part_empty in zip(outs, weight, empty, strict=True):
        if part_empty.any():  # 0 * NaN is NaN, so an unused out must not be read
            part = part.masked_fill(part_empty.unsqueeze(-1), 0.0)
        out.addcmul_(part.float(), part_weight)
    return out.to(outs.dtype), lse
