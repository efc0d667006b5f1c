"""The specification of antidiagonal_mass: fp32, every product of whole groups at once."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.kernels.paged_attention.plan import AttentionPlan


def antidiagonal_mass(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, block: int, stride: int, scale: float,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    tokens, length = plan.num_tokens, plan.host_kv_lens[0]
    group_size = query.shape[1] // key_cache.shape[2]
    keys = key_cache[plan.block_table[0].long()].flatten(0, 1)[:length].float()
    keys = keys.repeat_interleave(group_size, 1)
    query_groups = _grouped(query.float(), stride).flip(1)  # [m, stride, Hq, D]
    key_groups = _grouped(keys, stride)
    first = torch.arange(0, tokens, stride, device=query.device)
    present = (tokens - first).clamp_max(stride).unsqueeze(1)
    scores = torch.einsum("irhd,jrhd->hij", query_groups, key_groups) * scale / present
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    last = first.unsqueeze(1) + length - tokens  # the group that holds the queries themselves
    later = torch.arange(0, length, stride, device=query.device) > last
    weights = scores.masked_fill(later, float("-inf")).softmax(-1)
    to_key_block = torch.arange(0, length, stride, device=query.device) // block
    to_row_block = first // block
    masses = weights.new_zeros(len(weights), len(first), -(-length // block))
    masses.index_add_(2, to_key_block, weights)
    rows = masses.new_zeros(len(weights), -(-tokens // block), masses.shape[2])
    rows.index_add_(1, to_row_block, masses)
    return rows / to_row_block.bincount().unsqueeze(1)


def _grouped(rows: Tensor, stride: int) -> Tensor:
    """[n, H, D] → [groups, stride, H, D], zeros behind the end."""
    return pad(rows, (0, 0, 0, 0, 0, -len(rows) % stride)).view(-1, stride, *rows.shape[1:])
