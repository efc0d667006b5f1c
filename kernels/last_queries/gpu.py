"""last_queries in Triton: one pass for the softmax's sums, one that forms probabilities and adds them up.

A program of the second pass owns STEP neighbouring columns and STEP neighbouring diagonals. The tile of keys
that holds the diagonals' cells in all of its rows is BLOCK_R keys longer, hence read by its neighbour too; no
two programs write to one cell, so the sums are the same in every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.unit_scores.gpu import head_scores

MOST_ROWS = 64  # of one program; further rows are added up afterwards
ANY_ROW = tl.constexpr(2**30)  # rows beyond the last are clamped to it, and masked


def last_queries(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, dim = query.shape
    _, page_size, num_kv_heads, _ = key_cache.shape
    length, device = plan.host_kv_lens[0], query.device
    constants = sum_constants(
        dim, heads // num_kv_heads, page_size, rows,
        exact=query.dtype == torch.float32, softcap=softcap is not None,
    )  # fmt: skip
    block_n, block_r = constants["BLOCK_N"], constants["BLOCK_R"]
    row_blocks = triton.cdiv(rows, block_r)
    tiles = triton.cdiv(length, block_n)
    facts = (length, rows, scale, softcap or 0.0, *query.stride(), *key_cache.stride())

    parts = torch.empty(tiles, heads, rows, dtype=torch.float32, device=device)
    normalise_kernel[tiles, heads, row_blocks](
        query, key_cache, parts, plan.block_table, *facts, *parts.stride()[:2], **constants
    )
    lse = torch.logsumexp(parts, 0)  # [Hq, R]
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float().unsqueeze(1))

    sums = torch.zeros(2, row_blocks, heads, length, dtype=torch.float32, device=device)
    vertical, slash = sums
    sum_kernel[triton.cdiv(length + block_r, block_n - block_r), heads, row_blocks](
        query, key_cache, lse, vertical, slash, plan.block_table, *facts, *lse.stride()[:1],
        *vertical.stride()[:2], **constants,
    )  # fmt: skip
    return (vertical[0], slash[0]) if row_blocks == 1 else (vertical.sum(0), slash.sum(0))


def sum_constants(
    dim: int, group_size: int, page_size: int, rows: int, *, exact: bool, softcap: bool
) -> dict[str, Any]:
    """Everything that specialises either kernel, `num_warps` included."""
    return {
        "DIM": dim, "GROUP_SIZE": group_size, "PAGE_SIZE": page_size, "BLOCK_N": 128 if exact else 256,
        "BLOCK_R": max(16, min(MOST_ROWS, triton.next_power_of_2(rows))),
        "BLOCK_D": max(16, min(64, triton.next_power_of_2(dim))),
        "SOFTCAP": softcap, "PRECISION": "tf32x3" if exact else "tf32", "num_warps": 8,
    }  # fmt: skip


@triton.jit(do_not_specialize=["length"])  # type: ignore[untyped-decorator]
def normalise_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, parts, block_table, length, num_rows, scale, softcap,
    query_row, query_head, query_dim, cache_page, cache_token, cache_head, cache_dim, parts_tile, parts_head,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each row's scores over one tile of keys."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    tile = causal_scores(
        query, key_cache, block_table, head, rows, tl.program_id(0) * BLOCK_N, length, num_rows, scale,
        softcap, query_row, query_head, query_dim, cache_page, cache_token, cache_head, cache_dim,
        DIM, GROUP_SIZE, PAGE_SIZE, BLOCK_N, BLOCK_R, BLOCK_D, SOFTCAP, PRECISION,
    )  # fmt: skip
    peak = tl.max(tile, 0)
    total = tl.sum(tl.exp(tile - tl.where(peak == float("-inf"), 0.0, peak)[None, :]), 0)
    part = peak + tl.log(tl.where(total > 0, total, 1.0))  # -inf for a row that ends before the tile
    into = parts + tl.program_id(0).to(tl.int64) * parts_tile + head * parts_head + rows
    tl.store(into, part, mask=rows < num_rows)


@triton.jit(do_not_specialize=["length"])  # type: ignore[untyped-decorator]
def sum_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, lse, vertical, slash, block_table, length, num_rows, scale, softcap,
    query_row, query_head, query_dim, cache_page, cache_token, cache_head, cache_dim, lse_head,
    sums_block, sums_head,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    STEP: tl.constexpr = BLOCK_N - BLOCK_R
    head = tl.program_id(1).to(tl.int64)
    first_row = tl.program_id(2) * BLOCK_R
    rows = first_row + tl.arange(0, BLOCK_R)
    start = tl.program_id(0) * STEP - BLOCK_R  # the longest diagonals begin before the first key
    tile = causal_scores(
        query, key_cache, block_table, head, rows, start, length, num_rows, scale, softcap,
        query_row, query_head, query_dim, cache_page, cache_token, cache_head, cache_dim,
        DIM, GROUP_SIZE, PAGE_SIZE, BLOCK_N, BLOCK_R, BLOCK_D, SOFTCAP, PRECISION,
    )  # fmt: skip
    norm = tl.load(lse + head * lse_head + rows, mask=rows < num_rows, other=0.0)
    mass = tl.exp(tile - norm[None, :])
    into = tl.program_id(2).to(tl.int64) * sums_block + head * sums_head
    place = tl.arange(0, BLOCK_N)
    own = place < STEP

    keys = start + place
    tl.store(vertical + into + keys, tl.sum(mass, 1), mask=own & (keys >= 0) & (keys < length))

    below = tl.minimum(place[:, None] + tl.arange(0, BLOCK_R)[None, :], BLOCK_N - 1)
    offsets = length - num_rows + first_row - keys
    diagonals = tl.sum(tl.gather(mass, below, 0), 1)
    tl.store(slash + into + offsets, diagonals, mask=own & (offsets >= 0) & (offsets < length))


@triton.jit  # type: ignore[untyped-decorator]
def causal_scores(  # type: ignore[no-untyped-def]
    query, key_cache, block_table, head, rows, start, length, num_rows, scale, softcap,
    query_row, query_head, query_dim, cache_page, cache_token, cache_head, cache_dim,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, BLOCK_R]: keys from `start` on against a head's rows; -inf where a row does not see a key."""
    keys = start + tl.arange(0, BLOCK_N)
    seen = (keys >= 0) & (keys < length)
    page = tl.load(block_table + keys // PAGE_SIZE, mask=seen, other=0).to(tl.int64)  # a pool can exceed 2^31
    cells = key_cache + page * cache_page + (keys % PAGE_SIZE) * cache_token
    tile = head_scores(
        query + head * query_head, tl.minimum(rows, num_rows - 1), query_row, query_dim,
        cells + (head // GROUP_SIZE) * cache_head, seen, cache_dim, scale, softcap,
        DIM, ANY_ROW, BLOCK_N, BLOCK_R, BLOCK_D, SOFTCAP, PRECISION,
    )  # fmt: skip
    causal = keys[:, None] <= (length - num_rows + rows)[None, :]
    return tl.where(seen[:, None] & causal & (rows < num_rows)[None, :], tile, float("-inf"))
