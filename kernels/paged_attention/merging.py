"""Attention over one more set of keys, folded into what is there by log-sum-exp."""

import torch
from torch import Tensor


def add_part(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge `[..., D]` outputs in the dtype of their `[...]` natural-log lse; every row has keys in both."""
    weight = torch.sigmoid(part_lse - lse).unsqueeze(-1)
    return torch.lerp(out.to(lse.dtype), part.to(lse.dtype), weight), torch.logaddexp(lse, part_lse)


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> None:
    """In place: one more key for each head of out `[T, H, D]`, seen by every query, its value zero."""
    out.mul_(torch.sigmoid(lse - sinks.float()).unsqueeze(-1))
    torch.logaddexp(lse, sinks.float(), out=lse)
