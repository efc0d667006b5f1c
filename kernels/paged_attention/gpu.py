"""paged_attention in Triton: one kernel for chunks and decodes, a second to merge the splits of long decodes.

A program owns a tile of rows of one KV head, a row being one (query, head of the group) pair: K and V are
read once per KV head, and a decode is a tile with few rows. Programs too few to fill the GPU divide their
keys into splits. Long dense chunks go to a library's attention where there is one.
"""

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from headway.kernels.merge_states.gpu import merge_into
from headway.kernels.paged_attention.gpu_backends import chosen
from headway.kernels.paged_attention.gpu_dense import attend_chunk, long_chunks
from headway.kernels.paged_attention.gpu_kernel import attend_kernel
from headway.kernels.paged_attention.gpu_schedule import schedule
from headway.kernels.paged_attention.plan import AttentionPlan


def paged_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    scale: float, window: int | None, softcap: float | None, sinks: Tensor | None, out: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if out is None:
        out = torch.empty((*query.shape[:2], value_cache.shape[3]), dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    num_kv_heads = key_cache.shape[2]
    group_size = query.shape[1] // num_kv_heads
    shared = value_cache.data_ptr() == key_cache.data_ptr() and value_cache.stride() == key_cache.stride()
    exact = query.dtype == torch.float32
    decode_m = block_rows(group_size, query.shape[2], exact)
    chunk_m = block_rows(128, query.shape[2], exact)
    long: list[int] = []
    if softcap is None and query.shape[2] == value_cache.shape[3]:
        long = long_chunks(plan, window)
    library = chosen(query.device, query.dtype, query.shape[2]) if long else None
    if library is None:
        long = []
    else:
        for b in long:
            rows = plan.rows(b)
            attend_chunk(
                library, query[rows], key_cache, value_cache, plan, b, scale, sinks, out[rows], lse[rows]
            )
    rest = [b for b in range(len(plan.host_q_lens)) if b not in long]
    launches = plan.memo(
        ("gpu", num_kv_heads, group_size, decode_m, chunk_m, window, *long),
        lambda: schedule(
            plan, rest, num_kv_heads, group_size, decode_m, chunk_m, window, num_cores(query.device)
        ),
    )
    for launch in launches:
        part_out, part_lse = out[None], lse[None]
        if launch.splits > 1:
            shape = (launch.splits, len(launch.tokens), query.shape[1])
            part_out = torch.empty((*shape, out.shape[2]), dtype=torch.float32, device=query.device)
            part_lse = torch.empty(shape, dtype=torch.float32, device=query.device)
        constants = kernel_constants(
            query.shape[2], value_cache.shape[3], group_size, plan.page_size, launch.block_m,
            exact=exact, split=launch.splits > 1, window=window is not None,
            softcap=softcap is not None, sinks=sinks is not None, shared=shared,
        )  # fmt: skip
        attend_kernel[len(launch.tiles), num_kv_heads, launch.splits](
            query, key_cache, value_cache, part_out, part_lse, sinks,
            plan.cu_seqlens_q, plan.kv_lens, plan.block_table, launch.tiles,
            scale, window or 0, softcap or 0.0,
            *query.stride(), *key_cache.stride(), *value_cache.stride(),
            *part_out.stride(), *part_lse.stride(), plan.block_table.stride(0),
            **constants,
        )  # fmt: skip
        if launch.splits > 1:
            merge_into(part_out, part_lse, out, lse, launch.tokens)
    return out, lse


def kernel_constants(
    key_dim: int, value_dim: int, group_size: int, page_size: int, block_m: int, *,
    exact: bool, split: bool, window: bool, softcap: bool, sinks: bool, shared: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that specialises the kernel, `num_warps` and `num_stages` included."""
    main_dim = triton.next_power_of_2(key_dim)
    rest_dim = 0
    if key_dim > 256 and main_dim != key_dim:  # MLA: 576 = 512 + 64, not 1024
        main_dim //= 2
        rest_dim = max(16, triton.next_power_of_2(key_dim - main_dim))
    block_n, num_warps, num_stages = _tile(max(main_dim, value_dim), block_m, exact, split)
    return {
        "KEY_DIM": key_dim, "VALUE_DIM": value_dim, "GROUP_SIZE": group_size, "PAGE_SIZE": page_size,
        "BLOCK_M": block_m, "BLOCK_N": block_n,
        "BLOCK_K": max(16, main_dim), "BLOCK_REST": rest_dim,
        "BLOCK_V": max(16, triton.next_power_of_2(value_dim)),
        "SPLIT": split, "WINDOW": window, "SOFTCAP": softcap, "SINKS": sinks,
        "SHARED": shared and value_dim == main_dim,  # V is the K tile already loaded
        "PRECISION": "tf32x3" if exact else "tf32",
        "num_warps": num_warps, "num_stages": num_stages,
    }  # fmt: skip


def block_rows(rows: int, dim: int, exact: bool) -> int:
    """BLOCK_M for a sequence of so many rows: all of them, or what registers can hold."""
    most = 32 if exact or dim > 256 else 128
    return max(16, min(most, int(triton.next_power_of_2(rows))))


def _tile(dim: int, block_m: int, exact: bool, split: bool) -> tuple[int, int, int]:
    """BLOCK_N, warps, stages: none spills on sm_90 (tests/kernels/test_compiled.py); not yet timed."""
    if exact or dim > 256:
        return 32, 8 if block_m > 16 else 4, 2
    if block_m <= 32:
        return (64, 4, 3 if split else 2) if dim <= 128 else (32, 4, 3)
    return (64, 8, 3) if dim <= 128 else (32, 8, 2)


@cache
def num_cores(device: torch.device) -> int:
    """Streaming multiprocessors; the interpreter has none and gets enough to make it split."""
    if device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
