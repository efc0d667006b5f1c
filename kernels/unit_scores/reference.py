"""The specification of unit_scores: fp32, one sequence after the other."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.unit_scores import Reduction


def unit_scores(
    query: Tensor, table: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    reduce: Reduction, active: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, heads, _ = query.shape
    _, units, num_kv_heads, _ = table.shape
    group_size = heads // num_kv_heads
    width = units * plan.max_pages
    out_heads = heads if reduce == "none" else num_kv_heads
    out = torch.full((batch, out_heads, width), float("-inf"), device=query.device)
    for b, kv_len in enumerate(plan.host_kv_lens):
        if active is not None and not active[b]:
            continue
        pages = plan.block_table[b, : len(plan.host_tables[b])].long()
        scored = -(-kv_len * units // plan.page_size)
        rows = table[pages].flatten(0, 1)[:scored].float().repeat_interleave(group_size, 1)  # [N, Hq, D]
        scores = torch.einsum("hd,nhd->hn", query[b].float(), rows) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        groups = scores.view(num_kv_heads, group_size, scored)
        if reduce == "max":
            scores = groups.amax(1)
        elif reduce == "mean":
            scores = groups.mean(1)
        out[b, :, :scored] = scores
    return out
