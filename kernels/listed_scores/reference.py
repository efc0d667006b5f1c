"""The specification of listed_scores: fp32, one KV head of one sequence after the other."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan


def listed_scores(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int, scale: float,
    softcap: float | None, active: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, num_lists, num_units = indices.shape
    num_kv_heads = key_cache.shape[2]
    out = torch.full((batch, num_kv_heads, num_units * unit), float("-inf"), device=query.device)
    for b in range(batch):
        if active is not None and not active[b]:
            continue
        groups = query[b].float().view(num_kv_heads, -1, query.shape[2])  # [Hkv, G, D]
        for kv_head in range(num_kv_heads):
            units = indices[b, kv_head * num_lists // num_kv_heads].long()
            tokens = (units[units >= 0, None] * unit + torch.arange(unit, device=query.device)).flatten()
            tokens = tokens[tokens < plan.kv_lens[b]]  # [N]
            pages = plan.block_table[b, tokens // plan.page_size].long()
            keys = key_cache[pages, tokens % plan.page_size, kv_head].float()  # [N, D]
            scores = groups[kv_head] @ keys.T * scale  # [G, N]
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            out[b, kv_head, : len(tokens)] = scores.amax(0)
    return out
