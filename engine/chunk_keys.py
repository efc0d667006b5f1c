"""Chunk keys: a vector for each unit and KV head that stands for its keys (LongHeads, arXiv 2402.10685).

LongHeads lets the tokens of a chunk attend to each other without a mask, takes the mean of the outputs, and
lets that mean attend to the chunk's keys. It does so with the chunk's own queries and un-rotated keys. A page
that the prefix cache hands out has no queries, and its keys are rotated; so here the page's keys, as they are
in the cache, stand in for its queries and values too. That they can is an inference.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def chunk_keys(keys: Tensor, filled: Tensor, scale: float) -> Tensor:
    """The chunk keys [P, Hkv, D] of P units, a function of each unit's keys and nothing else.

    Args:
        keys: [P, unit, Hkv, D]; those past `filled` may be anything.
        filled: int64 [P], tokens present in each unit, at least 1.
        scale: factor on k·k, the layer's own on q·k.
    """
    there = torch.arange(keys.shape[1], device=keys.device) < filled.unsqueeze(1)
    absent = ~there[:, None, :, None]
    rows = keys.transpose(1, 2).float().masked_fill(absent, 0.0)
    mask = there[:, None, None, :]
    outputs = scaled_dot_product_attention(rows, rows, rows, attn_mask=mask, scale=scale)
    mean = outputs.masked_fill(absent, 0.0).sum(2, keepdim=True) / filled.view(-1, 1, 1, 1)
    attended = scaled_dot_product_attention(mean, rows, rows, attn_mask=mask, scale=scale)
    return attended.squeeze(2).to(keys.dtype)
