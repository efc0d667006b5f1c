"""The specification of decode_attention: `store_kv`, then `paged_attention`, each in the version at hand."""

import torch
from torch import Tensor

from headway.kernels.paged_attention import AttentionPlan, paged_attention
from headway.kernels.store_kv import store_kv


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    scale: float, window: int | None, softcap: float | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    store_kv(key, value, key_cache, value_cache, plan.memo("last slots", lambda: _last_slots(plan)))
    out, _ = paged_attention(
        query, key_cache, value_cache, plan, scale=scale, window=window, softcap=softcap, sinks=sinks
    )
    return out


def _last_slots(plan: AttentionPlan) -> Tensor:
    size, lasts = plan.page_size, zip(plan.host_tables, plan.host_kv_lens, strict=True)
    slots = [int(pages[-1]) * size + (length - 1) % size for pages, length in lasts]
    return torch.tensor(slots, device=plan.device)
