"""How much attention a prompt's queries give to every token before them, exactly, a block at a time."""

import torch
from torch import Tensor

from headway.engine.selection.layer_view import LayerView

BLOCK_TOKENS = 1024
BLOCK_NUMBERS = 2**22
"""Scores held at once, per block of rows and tokens: 16 MiB."""


def attention_mass(query: Tensor, lse: Tensor, layer: LayerView) -> Tensor:
    """Sum over T queries of their attention exp(q·k - lse).

    Args:
        query: [T, Hq, Dk], of the last T tokens of the one sequence that `layer` shows.
        lse: fp32 [T, Hq], of their causal attention.

    Returns:
        fp32 [Hq, n], a column for each token of the sequence.
    """
    spec, length = layer.spec, layer.plan.host_kv_lens[0]
    heads = spec.num_kv_heads
    # [T, Hq, …] → [Hkv, T, group, …]: the heads of a group share their keys.
    grouped = query.reshape(len(query), heads, -1, spec.key_dim).transpose(0, 1)
    grouped_lse = lse.reshape(len(query), heads, -1, 1).transpose(0, 1)
    positions = torch.arange(length - len(query), length, device=query.device)
    mass = query.new_zeros(spec.num_heads, length, dtype=torch.float32)
    pages = layer.plan.block_table[0].long()
    step = max(1, BLOCK_TOKENS // layer.page_size)
    rows = max(1, BLOCK_NUMBERS // (spec.num_heads * step * layer.page_size))
    for first in range(0, len(pages), step):
        start = first * layer.page_size
        keys = layer.key_cache[pages[first : first + step]].flatten(0, 1)[: length - start]
        keys = keys.permute(1, 2, 0).float()
        tokens = torch.arange(start, start + keys.shape[-1], device=query.device)
        for row in range(0, len(query), rows):
            part = grouped[:, row : row + rows].float() * spec.scale
            scores = (part.flatten(1, 2) @ keys).view(*part.shape[:3], -1)
            if spec.softcap is not None:
                scores = torch.tanh(scores / spec.softcap) * spec.softcap
            scores.sub_(grouped_lse[:, row : row + rows]).exp_()
            if start + len(tokens) > length - len(query) + row:
                scores.masked_fill_(tokens > positions[row : row + rows].view(-1, 1, 1), 0.0)
            mass[:, start : start + len(tokens)] += scores.sum(1).flatten(0, 1)
    return mass
