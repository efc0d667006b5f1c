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
        for part in torch.arange(len(query), device=query.device).split(rows):
            # [T, Hq, D] → [Hkv, T · group, D]: the heads of a group share their keys.
            grouped = query[part].unflatten(1, (heads, -1)).transpose(0, 1)
            scores = (grouped.float().flatten(1, 2) @ keys) * spec.scale
            if spec.softcap is not None:
                scores = torch.tanh(scores / spec.softcap) * spec.softcap
            scores = scores.unflatten(1, grouped.shape[1:3])
            scores -= lse[part].unflatten(1, (heads, -1)).transpose(0, 1).unsqueeze(-1)
            ahead = tokens > positions[part].view(-1, 1, 1)
            mass[:, tokens] += scores.exp_().masked_fill_(ahead, 0.0).sum(1).flatten(0, 1)
    return mass
