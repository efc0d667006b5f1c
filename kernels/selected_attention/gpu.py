"""selected_attention in Triton: one split-KV kernel for all units and lists, a second one merges the splits.

The grid follows from shapes alone (B, Hs, M, unit); lengths, lists and `active` are read on the device, so a
CUDA graph may hold the launch.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from headway.kernels.paged_attention.gpu import block_rows, kernel_constants, num_cores
from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.selected_attention.gpu_kernel import attend_selected_kernel, merge_splits_kernel

WAVES = 4  # programs per core that splitting aims at: several resident at once hide each other's waits
SPLIT_TOKENS = 64  # gathered keys arrive slowly: even short lists are worth many programs


def selected_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int,
    scale: float, softcap: float | None, sinks: Tensor | None, active: Tensor | None, out: Tensor | None,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, num_heads, key_dim = query.shape
    num_kv_heads, value_dim = value_cache.shape[2:]
    _, num_lists, num_units = indices.shape
    device = query.device
    if out is None:
        out = torch.empty((batch, num_heads, value_dim), dtype=query.dtype, device=device)
    if lse is None:
        lse = torch.empty((batch, num_heads), dtype=torch.float32, device=device)
    constants = selected_constants(
        key_dim, value_dim, num_heads, num_kv_heads, num_lists, plan.page_size, unit,
        exact=query.dtype == torch.float32, softcap=softcap is not None, sinks=sinks is not None,
        shared=value_cache.data_ptr() == key_cache.data_ptr() and value_cache.stride() == key_cache.stride(),
        active=active is not None,
    )  # fmt: skip
    programs = num_heads // constants["ROWS"] * -(-constants["ROWS"] // constants["BLOCK_M"])
    splits = num_splits(programs * batch, num_units * unit, num_cores(device))
    part_out, part_lse = out[None], lse[None]
    if splits > 1:
        part_out = torch.empty((splits, batch, num_heads, value_dim), dtype=torch.float32, device=device)
        part_lse = torch.empty((splits, batch, num_heads), dtype=torch.float32, device=device)
    list_row, list_head, list_unit = indices.stride()
    attend_selected_kernel[programs, batch, splits](
        query, key_cache, value_cache, part_out, part_lse, sinks, indices, plan.kv_lens, plan.block_table,
        active, scale, softcap or 0.0, num_units,
        *query.stride(), *key_cache.stride(), *value_cache.stride(), *part_out.stride(), *part_lse.stride(),
        list_row, list_head if num_lists > 1 else 0, list_unit, plan.block_table.stride(0),
        active.stride(0) if active is not None else 0,
        **constants,
    )  # fmt: skip
    if splits > 1:
        merge_splits_kernel[batch, num_heads](
            part_out, part_lse, out, lse, active, splits,
            *part_out.stride(), *part_lse.stride(), *out.stride(), *lse.stride(),
            active.stride(0) if active is not None else 0,
            **merge_constants(splits, value_dim, active=active is not None),
        )  # fmt: skip
    return out, lse


def num_splits(programs: int, tokens: int, cores: int) -> int:
    """How many programs share one list of at most so many tokens."""
    return max(1, min(-(-WAVES * cores // programs), tokens // SPLIT_TOKENS))


def selected_constants(
    key_dim: int, value_dim: int, num_heads: int, num_kv_heads: int, num_lists: int, page_size: int,
    unit: int, *, exact: bool, softcap: bool, sinks: bool, shared: bool, active: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that specialises the kernel, `num_warps` and `num_stages` included."""
    group_size = num_heads // num_kv_heads
    rows = group_size if num_lists <= num_kv_heads else 1  # query heads that read the same list of a KV head
    constants = kernel_constants(
        key_dim, value_dim, group_size, page_size, block_rows(rows, key_dim, exact),
        exact=exact, split=True, window=False, softcap=softcap, sinks=sinks, shared=shared,
    )  # fmt: skip
    del constants["WINDOW"], constants["SPLIT"]
    return constants | {"ROWS": rows, "UNIT": unit, "ACTIVE": active}


def merge_constants(splits: int, value_dim: int, *, active: bool) -> dict[str, Any]:
    return {
        "DIM": value_dim, "BLOCK_D": triton.next_power_of_2(value_dim),
        "BLOCK_S": triton.next_power_of_2(splits), "CHUNK": min(16, triton.next_power_of_2(splits)),
        "ACTIVE": active, "num_warps": 4 if value_dim > 128 else 2,
    }  # fmt: skip
