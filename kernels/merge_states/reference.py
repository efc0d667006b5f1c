"""The specification of merge_states."""

import torch
from torch import Tensor


def merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.logsumexp(lses, 0)
    weight = torch.exp(lses - lse).unsqueeze(-1)  # [P, T, H, 1]; NaN where no part has keys
    used = (lses > float("-inf")).unsqueeze(-1)
    out = torch.where(used, outs.float() * weight, 0.0).sum(0)
    return out.to(outs.dtype), lse
