"""unit_scores in Triton: one program per tile of units, KV head and sequence; each row is read once.

A program's tile is the wide side of a tensor-core product, the heads of the group its narrow one. The grid
depends on the batch's size and its largest number of pages alone.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.unit_scores import Reduction

BLOCK_N = 64  # 16 KiB of bf16 rows of 128: several programs per core keep enough reads in flight


def unit_scores(
    query: Tensor, table: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    reduce: Reduction, active: Tensor | None,
) -> Tensor:  # fmt: skip
    batch, num_heads, dim = query.shape
    _, units, num_kv_heads, _ = table.shape
    block_table = plan.block_table
    width = units * block_table.shape[1]
    heads = num_heads if reduce == "none" else num_kv_heads
    scores = torch.empty(batch, heads, width, dtype=torch.float32, device=query.device)
    constants = score_constants(
        dim, num_heads // num_kv_heads, units, plan.page_size, reduce,
        exact=query.dtype == torch.float32, softcap=softcap is not None, active=active is not None,
    )  # fmt: skip
    score_kernel[triton.cdiv(width, BLOCK_N), num_kv_heads, batch](
        query, table, scores, active, plan.kv_lens, block_table, width, scale, softcap or 0.0,
        *query.stride(), *table.stride(), *scores.stride()[:2],
        block_table.stride(0), 0 if active is None else active.stride(0),
        **constants,
    )  # fmt: skip
    return scores


def score_constants(
    dim: int, group_size: int, units: int, page_size: int, reduce: Reduction, *,
    exact: bool, softcap: bool, active: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that specialises the kernel, `num_warps` included."""
    return {
        "DIM": dim, "GROUP_SIZE": group_size, "UNITS": units, "UNIT_TOKENS": page_size // units,
        "BLOCK_N": BLOCK_N, "BLOCK_G": max(16, min(64, triton.next_power_of_2(group_size))),
        "BLOCK_D": max(16, min(64 if exact else 128, triton.next_power_of_2(dim))),
        "REDUCE": reduce, "SOFTCAP": softcap, "ACTIVE": active,
        "PRECISION": "tf32x3" if exact else "tf32", "num_warps": 4,
    }  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def score_kernel(  # type: ignore[no-untyped-def]
    query, table, scores, active, kv_lens, block_table, width, scale, softcap,
    query_row, query_head, query_dim, table_page, table_unit, table_head, table_dim,
    scores_row, scores_head, block_table_row, active_row,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, UNITS: tl.constexpr, UNIT_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, REDUCE: tl.constexpr,
    SOFTCAP: tl.constexpr, ACTIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    units = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    scored = tl.cdiv(tl.load(kv_lens + row), UNIT_TOKENS)
    if ACTIVE:
        scored = tl.where(tl.load(active + row * active_row), scored, 0)
    seen = units < scored  # rows beyond may hold NaN, and are never read
    page = tl.load(block_table + row * block_table_row + units // UNITS, mask=seen, other=0)
    page = page.to(tl.int64)  # a pool can exceed 2^31 elements
    rows = table + page * table_page + (units % UNITS) * table_unit + kv_head * table_head
    queries = query + row * query_row + kv_head * GROUP_SIZE * query_head
    into = scores + row * scores_row + units

    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in tl.static_range(0, GROUP_SIZE, BLOCK_G):
        heads = first + tl.arange(0, BLOCK_G)
        is_head = heads < GROUP_SIZE
        tile = head_scores(
            queries, heads, query_head, query_dim, rows, seen, table_dim, scale, softcap,
            DIM, GROUP_SIZE, BLOCK_N, BLOCK_G, BLOCK_D, SOFTCAP, PRECISION,
        )  # fmt: skip
        if REDUCE == "max":
            best = tl.maximum(best, tl.max(tl.where(is_head[None, :], tile, float("-inf")), 1))
        elif REDUCE == "mean":
            total += tl.sum(tl.where(is_head[None, :], tile, 0.0), 1)
        else:
            cells = into[:, None] + (kv_head * GROUP_SIZE + heads)[None, :] * scores_head
            inside = (units < width)[:, None] & is_head[None, :]
            tl.store(cells, tl.where(seen[:, None], tile, float("-inf")), mask=inside)
    if REDUCE != "none":
        reduced = best if REDUCE == "max" else total / GROUP_SIZE
        tl.store(into + kv_head * scores_head, tl.where(seen, reduced, float("-inf")), mask=units < width)


@triton.jit  # type: ignore[untyped-decorator]
def head_scores(  # type: ignore[no-untyped-def]
    queries, heads, query_head, query_dim, rows, seen, row_dim, scale, softcap,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, BLOCK_G]: rows against some of a group's heads; rows not seen are not read."""
    is_head = heads < GROUP_SIZE
    tile = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    for start in tl.static_range(0, DIM, BLOCK_D):
        dims = start + tl.arange(0, BLOCK_D)
        is_dim = dims < DIM
        k = tl.load(rows[:, None] + dims[None, :] * row_dim, mask=seen[:, None] & is_dim[None, :], other=0.0)
        q = tl.load(
            queries + heads[:, None] * query_head + dims[None, :] * query_dim,
            mask=is_head[:, None] & is_dim[None, :],
            other=0.0,
        )
        tile = tl.dot(k.to(q.dtype), tl.trans(q), tile, input_precision=PRECISION)
    tile = tile * scale
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2x) + 1)
        tile = softcap * (1.0 - 2.0 / (tl.exp2(tile * (2.885390081777927 / softcap)) + 1.0))
    return tile
