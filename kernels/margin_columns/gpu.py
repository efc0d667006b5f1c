"""margin_columns in Triton: one program per tile of keys and KV head; its keys serve all heads of the group.

The grid follows from host numbers (stop - start, Hkv); nothing of the scores leaves the program.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.unit_scores.gpu import head_scores

BLOCK_N = 64  # with 128, fp32 keys of 128 channels spill
ANY_ROW = tl.constexpr(2**30)  # the kernel itself sees to it that there are no rows beyond


def margin_columns(
    query: Tensor, limits: Tensor, key_cache: Tensor, plan: AttentionPlan, start: int, stop: int, scale: float
) -> Tensor:
    rows, heads, dim = query.shape
    _, page_size, num_kv_heads, _ = key_cache.shape
    kept = torch.empty(heads, stop - start, dtype=torch.bool, device=query.device)
    constants = margin_constants(
        dim, heads // num_kv_heads, page_size, rows, exact=query.dtype == torch.float32
    )
    margin_kernel[triton.cdiv(stop - start, BLOCK_N), num_kv_heads](
        query, limits, key_cache, kept, plan.block_table, start, stop, rows, scale,
        *query.stride(), *limits.stride(), *key_cache.stride(), kept.stride(0), **constants,
    )  # fmt: skip
    return kept


def margin_constants(dim: int, group_size: int, page_size: int, rows: int, *, exact: bool) -> dict[str, Any]:
    """Everything that specialises the kernel, `num_warps` included."""
    return {
        "DIM": dim, "GROUP_SIZE": group_size, "PAGE_SIZE": page_size, "BLOCK_N": BLOCK_N,
        "BLOCK_R": max(16, min(32, triton.next_power_of_2(rows))),
        "BLOCK_D": max(16, min(64 if exact else 128, triton.next_power_of_2(dim))),
        "PRECISION": "tf32x3" if exact else "tf32", "num_warps": 4,
    }  # fmt: skip


@triton.jit(do_not_specialize=["start", "stop"])  # type: ignore[untyped-decorator]
def margin_kernel(  # type: ignore[no-untyped-def]
    query, limits, key_cache, kept, block_table, start, stop, num_rows, scale,
    query_row, query_head, query_dim, limit_row, limit_head,
    cache_page, cache_token, cache_head, cache_dim, kept_head,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    places = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = start + places
    seen = tokens < stop
    page = tl.load(block_table + tokens // PAGE_SIZE, mask=seen, other=0).to(tl.int64)
    keys = key_cache + page * cache_page + (tokens % PAGE_SIZE) * cache_token + kv_head * cache_head
    for member in range(GROUP_SIZE):
        head = (kv_head * GROUP_SIZE + member).to(tl.int64)
        reached = tl.zeros([BLOCK_N], tl.int32)
        for first in range(0, num_rows, BLOCK_R):
            rows = tl.minimum(first + tl.arange(0, BLOCK_R), num_rows - 1)  # the last one again is no harm
            bound = tl.load(limits + rows * limit_row + head * limit_head)
            tile = head_scores(
                query + head * query_head, rows, query_row, query_dim, keys, seen, cache_dim, scale, 0.0,
                DIM, ANY_ROW, BLOCK_N, BLOCK_R, BLOCK_D, False, PRECISION,
            )  # fmt: skip
            reached = tl.maximum(reached, tl.max((tile >= bound[None, :]).to(tl.int32), 1))
        tl.store(kept + head * kept_head + places, reached != 0, mask=seen)
