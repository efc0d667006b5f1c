"""The specification of selected_attention: fp32, one query head after the other."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan


def selected_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int,
    scale: float, softcap: float | None, sinks: Tensor | None, active: Tensor | None, out: Tensor | None,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, num_heads, _ = query.shape
    group_size = num_heads // key_cache.shape[2]
    heads_per_list = num_heads // indices.shape[1]
    if out is None:
        out = torch.empty((batch, num_heads, value_cache.shape[3]), dtype=query.dtype, device=query.device)
    if lse is None:
        lse = torch.empty((batch, num_heads), dtype=torch.float32, device=query.device)
    for b in range(batch):
        if active is not None and not active[b]:
            continue
        for head in range(num_heads):
            units = indices[b, head // heads_per_list].long()
            tokens = units[units >= 0, None] * unit + torch.arange(unit, device=query.device)
            tokens = tokens[tokens < plan.kv_lens[b]]  # [N], flat
            pages = plan.block_table[b, tokens // plan.page_size].long()
            at = pages, tokens % plan.page_size, head // group_size
            key, value = key_cache[at].float(), value_cache[at].float()  # [N, Dk], [N, Dv]

            scores = key @ query[b, head].float() * scale
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            if sinks is not None:  # one more logit, without a value
                scores = torch.cat([scores, sinks[head : head + 1].float()])
            lse[b, head] = torch.logsumexp(scores, 0)
            out[b, head] = (torch.softmax(scores, 0)[: len(tokens)] @ value).to(out.dtype)
    return out, lse
