"""The specification of margin_columns: fp32, all scores at once."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan


def margin_columns(
    query: Tensor, limits: Tensor, key_cache: Tensor, plan: AttentionPlan, start: int, stop: int, scale: float
) -> Tensor:
    group_size = query.shape[1] // key_cache.shape[2]
    tokens = torch.arange(start, stop, device=query.device)
    pages = plan.block_table[0, tokens // plan.page_size].long()
    keys = key_cache[pages, tokens % plan.page_size].float().repeat_interleave(group_size, 1)  # [N, Hq, D]
    scores = torch.einsum("rhd,nhd->rhn", query.float(), keys) * scale
    return (scores >= limits.unsqueeze(-1)).any(0)
