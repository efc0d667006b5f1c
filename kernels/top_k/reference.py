"""The specification of top_k."""

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int, limits: Tensor | None) -> Tensor:
    """scores `[R, N]`, limits `[R]`; int32 `[R, k]`."""
    out = torch.full((len(scores), k), -1, dtype=torch.int32, device=scores.device)
    for i, row in enumerate(scores):
        limit = k if limits is None else min(k, max(0, int(limits[i])))
        eligible = torch.nonzero(row > -torch.inf).flatten()  # false for NaN
        best_first = torch.argsort(row[eligible], descending=True, stable=True)
        chosen = eligible[best_first[:limit]].sort().values
        out[i, : len(chosen)] = chosen
    return out
