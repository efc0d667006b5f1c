"""margin_columns on a CPU: one product per KV head and piece of keys, which lie in place if they can."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_cache import CpuCache
from headway.kernels.paged_attention.cpu_schedule import Sequence
from headway.kernels.paged_attention.plan import AttentionPlan

SCORES = 256 * 1024  # per KV head: 1 MiB of fp32 scores


def margin_columns(
    query: Tensor, limits: Tensor, key_cache: Tensor, plan: AttentionPlan, start: int, stop: int, scale: float
) -> Tensor:
    rows, heads, dim = query.shape
    kv = CpuCache(key_cache, key_cache)
    one = Sequence.of(plan, 0, kv.cost.flat)
    groups = query.float().mul(scale).view(rows, kv.num_kv_heads, -1, dim).permute(1, 2, 0, 3)
    packed = groups.reshape(kv.num_kv_heads, -1, dim)  # [Hkv, G * R, D]
    bounds = limits.T.reshape(kv.num_kv_heads, -1, 1)
    kept = torch.empty(heads, stop - start, dtype=torch.bool)
    step = max(256, SCORES // packed.shape[1])
    for first in range(start, stop, step):
        last = min(first + step, stop)
        keys = kv.load(one.piece(first, last))[0].float()  # [n, Hkv, D]
        for kv_head, (queries, bound) in enumerate(zip(packed, bounds, strict=True)):
            reached = torch.mm(queries, keys[:, kv_head].T) >= bound
            of_group = kept.view(kv.num_kv_heads, -1, stop - start)[kv_head, :, first - start : last - start]
            torch.any(reached.view(-1, rows, last - first), 1, out=of_group)
    return kept
