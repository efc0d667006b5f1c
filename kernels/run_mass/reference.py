"""The specification of run_mass: PyTorch's logsumexp of whole runs."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def run_mass(scores: Tensor, run: int, ends: Tensor) -> Tensor:
    heads, rows, keys = scores.shape
    left_out = torch.arange(keys, device=scores.device) >= ends.unsqueeze(1)
    whole = pad(scores.masked_fill(left_out, -torch.inf), (0, -keys % run), value=-torch.inf)
    return whole.view(heads, rows, -(-keys // run), run).logsumexp(-1)
