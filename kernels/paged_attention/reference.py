"""The specification of paged_attention: fp32, one sequence after the other, all scores in memory."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan


def paged_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    scale: float, window: int | None, softcap: float | None, sinks: Tensor | None, out: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    group_size = query.shape[1] // key_cache.shape[2]
    if out is None:
        out = torch.empty((*query.shape[:2], value_cache.shape[3]), dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    for b, (q_len, kv_len) in enumerate(zip(plan.host_q_lens, plan.host_kv_lens, strict=True)):
        rows = plan.rows(b)
        pages = plan.block_table[b, : len(plan.host_tables[b])].long()
        key, value = (
            cache[pages].flatten(0, 1)[:kv_len].float().repeat_interleave(group_size, 1)
            for cache in (key_cache, value_cache)
        )  # [N, Hq, Dk], [N, Hq, Dv]

        scores = torch.einsum("thd,nhd->htn", query[rows].float(), key) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        q_pos = torch.arange(kv_len - q_len, kv_len, device=query.device).unsqueeze(1)
        k_pos = torch.arange(kv_len, device=query.device)
        seen = k_pos <= q_pos
        if window is not None:
            seen &= k_pos > q_pos - window
        scores.masked_fill_(~seen, float("-inf"))
        if sinks is not None:  # one more logit, without a value
            sink = sinks.float()[:, None, None].expand(-1, q_len, 1)
            scores = torch.cat([scores, sink], -1)
        lse[rows] = torch.logsumexp(scores, -1).T
        weights = torch.softmax(scores, -1)[..., :kv_len]
        out[rows] = torch.einsum("htn,nhd->thd", weights, value).to(out.dtype)
    return out, lse
