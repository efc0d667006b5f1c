"""The specification of top_k."""

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int, limits: Tensor | None) -> Tensor:
    out = torch.full((*scores.shape[:-1], k), -1, dtype=torch.int32, device=scores.device)
    rows = scores.reshape(-1, scores.shape[-1])
    row_limits = [k] * len(rows) if limits is None else limits.flatten().tolist()
    for row, limit, chosen in zip(rows, row_limits, out.view(-1, k), strict=True):
        eligible = torch.nonzero(row > -torch.inf).flatten()  # false for NaN
        best_first = torch.argsort(row[eligible], descending=True, stable=True)
        best = eligible[best_first[: max(0, min(k, limit))]]
        chosen[: len(best)] = best.sort().values
    return out
