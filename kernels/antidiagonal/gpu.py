"""antidiagonal_mass in Triton: one program per tile of query groups, tile of key groups and query head.

A program leaves, for each of its query groups, the lse over each unit of key groups; units are parts of a
block, and what is left to do with them is small. The grid follows from lengths that the host knows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from headway.kernels.paged_attention.plan import AttentionPlan

BLOCK_M, BLOCK_N = 64, 64


def antidiagonal_mass(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, block: int, stride: int, scale: float,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    tokens, heads, dim = query.shape
    _, page_size, num_kv_heads, _ = key_cache.shape
    per_block, blocks = block // stride, -(-plan.host_kv_lens[0] // block)
    groups, tiles = -(-tokens // stride), -(-tokens // block)
    unit = unit_groups(per_block)
    units = blocks * (per_block // unit)
    lse = torch.empty(heads, groups, units, dtype=torch.float32, device=query.device)
    constants = antidiagonal_constants(
        dim, heads // num_kv_heads, page_size, stride, unit,
        exact=query.dtype == torch.float32, softcap=softcap is not None,
    )  # fmt: skip
    grid = (triton.cdiv(units, constants["UNITS"]), triton.cdiv(groups, BLOCK_M), heads)
    antidiagonal_kernel[grid](
        query, key_cache, lse, plan.kv_lens, plan.block_table, tokens, groups, units, scale, softcap or 0.0,
        *query.stride(), *key_cache.stride(), *lse.stride()[:2],
        **constants,
    )  # fmt: skip
    mass = lse.softmax(-1).view(heads, groups, blocks, -1).sum(-1)  # [Hq, m, blocks]
    rows = pad(mass, (0, 0, 0, tiles * per_block - groups)).view(heads, tiles, per_block, blocks).sum(2)
    count = torch.full((tiles, 1), per_block, device=query.device)
    count[-1] = groups - (tiles - 1) * per_block
    return rows / count


def unit_groups(per_block: int) -> int:
    """Key groups of a unit: the largest part of a block that one program holds."""
    return next(size for size in range(min(per_block, BLOCK_N), 0, -1) if per_block % size == 0)


def antidiagonal_constants(
    dim: int, group_size: int, page_size: int, stride: int, unit: int, *, exact: bool, softcap: bool
) -> dict[str, Any]:
    """Everything that specialises the kernel, `num_warps` included."""
    padded = triton.next_power_of_2(unit)
    return {
        "DIM": dim, "GROUP_SIZE": group_size, "PAGE_SIZE": page_size, "STRIDE": stride, "UNIT": unit,
        "PADDED": padded, "UNITS": BLOCK_N // padded, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N,
        "BLOCK_D": max(16, min(64 if exact else 128, triton.next_power_of_2(dim))),
        "SOFTCAP": softcap, "PRECISION": "tf32x3" if exact else "tf32", "num_warps": 4,
    }  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def antidiagonal_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, lse, kv_lens, block_table, tokens, groups, units, scale, softcap,
    query_token, query_head, query_dim, cache_page, cache_token, cache_head, cache_dim, lse_head, lse_group,
    DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, PAGE_SIZE: tl.constexpr, STRIDE: tl.constexpr,
    UNIT: tl.constexpr, PADDED: tl.constexpr, UNITS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2)
    group = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    place = tl.arange(0, BLOCK_N)
    key_group = (tl.program_id(0) * UNITS + place // PADDED) * UNIT + place % PADDED
    kv_len = tl.load(kv_lens)
    own_group = (kv_len - tokens) // STRIDE + group
    into = lse + head.to(tl.int64) * lse_head + group.to(tl.int64) * lse_group
    inside = (group < groups)[:, None] & (unit < units)[None, :]
    if tl.program_id(0) * UNITS * UNIT >= (kv_len - tokens) // STRIDE + tl.program_id(1) * BLOCK_M + BLOCK_M:
        future = tl.full([BLOCK_M, UNITS], float("-inf"), tl.float32)
        tl.store(into[:, None] + unit[None, :], future, mask=inside)
        return

    queries = query + head * query_head
    keys = key_cache + (head // GROUP_SIZE) * cache_head
    scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    PIECES: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    for step in range(STRIDE * PIECES):  # one loop, not two: shared memory holds few pieces at a time
        r = step // PIECES
        row = group * STRIDE + STRIDE - 1 - r
        key = key_group * STRIDE + r
        stored = (place % PADDED < UNIT) & (key < kv_len)  # cells beyond may hold NaN, and are never read
        page = tl.load(block_table + key // PAGE_SIZE, mask=stored, other=0).to(tl.int64)
        dims = (step % PIECES) * BLOCK_D + tl.arange(0, BLOCK_D)
        is_dim = dims < DIM
        q = tl.load(
            queries + row.to(tl.int64)[:, None] * query_token + dims[None, :] * query_dim,
            mask=(row < tokens)[:, None] & is_dim[None, :],
            other=0.0,
        )
        key_rows = keys + page * cache_page + (key % PAGE_SIZE) * cache_token
        k = tl.load(
            key_rows[:, None] + dims[None, :] * cache_dim, mask=stored[:, None] & is_dim[None, :], other=0.0
        )
        scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
    present = tl.minimum(tokens - group * STRIDE, STRIDE)
    scores = scores * (scale / tl.maximum(present, 1).to(tl.float32))[:, None]
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2x) + 1)
        scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.885390081777927 / softcap)) + 1.0))
    seen = (place % PADDED < UNIT)[None, :] & (key_group[None, :] <= own_group[:, None])
    scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
    by_unit = tl.reshape(scores, [BLOCK_M, UNITS, PADDED])
    peak = tl.max(by_unit, 2)
    base = tl.where(peak > float("-inf"), peak, 0.0)
    total = tl.sum(tl.exp2(by_unit - base[:, :, None]), 2)
    unit_lse = (base + tl.log2(total)) * 0.6931471805599453
    tl.store(into[:, None] + unit[None, :], unit_lse, mask=inside)
