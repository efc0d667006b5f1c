"""The specification of last_queries: fp32, all probabilities at once."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan


def last_queries(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, _ = query.shape
    length, device = plan.host_kv_lens[0], query.device
    keys = key_cache[plan.block_table[0].long()].flatten(0, 1)[:length].float()
    keys = keys.repeat_interleave(heads // key_cache.shape[2], 1)
    scores = torch.einsum("rhd,nhd->hrn", query.float(), keys) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    positions = torch.arange(length - rows, length, device=device).unsqueeze(1)
    offsets = positions - torch.arange(length, device=device)  # [R, N]
    scores = scores.masked_fill(offsets < 0, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float().unsqueeze(1))
    mass = (scores - lse.unsqueeze(-1)).exp()
    slash = mass.new_zeros(heads, length)
    slash.index_add_(1, offsets.clamp_min(0).flatten(), mass.flatten(1))  # what lies before offset 0 is 0
    return mass.sum(1), slash
