"""listed_scores in Triton: one program per tile of listed tokens, KV head and sequence.

The grid follows from shapes alone (B, Hkv, M, unit); lists, lengths and `active` are read on the device, so a
CUDA graph may hold the launch. A tile of nothing but padding only writes -inf.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.unit_scores.gpu import head_scores, score_constants


def listed_scores(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int, scale: float,
    softcap: float | None, active: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, num_heads, dim = query.shape
    _, page_size, num_kv_heads, _ = key_cache.shape
    _, num_lists, num_units = indices.shape
    width = num_units * unit
    scores = torch.empty(batch, num_kv_heads, width, dtype=torch.float32, device=query.device)
    constants = listed_constants(
        dim, num_heads // num_kv_heads, page_size, unit,
        exact=query.dtype == torch.float32, softcap=softcap is not None, active=active is not None,
    )  # fmt: skip
    list_row, list_head, list_unit = indices.stride()
    listed_kernel[triton.cdiv(width, constants["BLOCK_N"]), num_kv_heads, batch](
        query, key_cache, scores, indices, active, plan.kv_lens, plan.block_table, width, scale,
        softcap or 0.0, *query.stride(), *key_cache.stride(), *scores.stride()[:2],
        list_row, list_head if num_lists > 1 else 0, list_unit, plan.block_table.stride(0),
        0 if active is None else active.stride(0),
        **constants,
    )  # fmt: skip
    return scores


def listed_constants(
    dim: int, group_size: int, page_size: int, unit: int, *, exact: bool, softcap: bool, active: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that specialises the kernel, `num_warps` included."""
    constants = score_constants(
        dim, group_size, page_size, page_size, "max", exact=exact, softcap=softcap, active=active
    )
    del constants["UNITS"], constants["UNIT_TOKENS"], constants["REDUCE"]
    return constants | {"PAGE_SIZE": page_size, "UNIT": unit}


@triton.jit  # type: ignore[untyped-decorator]
def listed_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, scores, indices, active, kv_lens, block_table, width, scale, softcap,
    query_row, query_head, query_dim, cache_page, cache_token, cache_head, cache_dim,
    scores_row, scores_head, list_row, list_head, list_unit, block_table_row, active_row,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
    SOFTCAP: tl.constexpr, ACTIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    places = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    kv_len = tl.load(kv_lens + row)
    if ACTIVE:
        kv_len = tl.where(tl.load(active + row * active_row), kv_len, 0)
    listed = indices + row * list_row + kv_head * list_head
    unit = tl.load(listed + places // UNIT * list_unit, mask=places < width, other=-1)
    tokens = unit * UNIT + places % UNIT
    seen = (unit >= 0) & (tokens < kv_len)  # cells beyond may hold NaN, and are never read
    into = scores + row * scores_row + kv_head * scores_head + places
    if tl.max(seen.to(tl.int32), 0) == 0:
        tl.store(into, tl.full([BLOCK_N], float("-inf"), tl.float32), mask=places < width)
        return
    page = tl.load(block_table + row * block_table_row + tokens // PAGE_SIZE, mask=seen, other=0)
    page = page.to(tl.int64)  # a pool can exceed 2^31 elements
    rows = key_cache + page * cache_page + (tokens % PAGE_SIZE) * cache_token + kv_head * cache_head
    queries = query + row * query_row + kv_head * GROUP_SIZE * query_head

    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    for first in tl.static_range(0, GROUP_SIZE, BLOCK_G):
        heads = first + tl.arange(0, BLOCK_G)
        tile = head_scores(
            queries, heads, query_head, query_dim, rows, seen, cache_dim, scale, softcap,
            DIM, GROUP_SIZE, BLOCK_N, BLOCK_G, BLOCK_D, SOFTCAP, PRECISION,
        )  # fmt: skip
        is_head = (heads < GROUP_SIZE)[None, :]
        best = tl.maximum(best, tl.max(tl.where(is_head, tile, float("-inf")), 1))
    tl.store(into, tl.where(seen, best, float("-inf")), mask=places < width)
