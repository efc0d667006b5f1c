"""tile_attention in Triton: one program for some rows of a tile, the heads that share its lists among them.

The grid follows from shapes alone (T, tile, heads); lengths and lists are read on the device.
"""

from typing import Any

import torch
from torch import Tensor

from headway.kernels.paged_attention.gpu import block_rows, kernel_constants
from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.tile_attention.gpu_kernel import attend_tile_kernel


def tile_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, tile: int,
    local_from: Tensor | None, sink_size: int, spans: Tensor | None, span: int, columns: Tensor | None,
    scale: float, softcap: float | None, sinks: Tensor | None, initial: tuple[Tensor, Tensor] | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tokens, num_heads, key_dim = query.shape
    num_kv_heads, value_dim = value_cache.shape[2:]
    if out is None:
        out = torch.empty((tokens, num_heads, value_dim), dtype=query.dtype, device=query.device)
    lse = torch.empty((tokens, num_heads), dtype=torch.float32, device=query.device)
    local, runs, keys = (
        x.contiguous() if x is not None and x.numel() else None for x in (local_from, spans, columns)
    )
    lanes = max(num_kv_heads, *(len(x) for x in (local, runs, keys) if x is not None), 1)
    constants = tile_constants(
        key_dim, value_dim, num_heads, num_kv_heads, lanes, plan.page_size, tile,
        exact=query.dtype == torch.float32, softcap=softcap is not None, sinks=sinks is not None,
        shared=value_cache.data_ptr() == key_cache.data_ptr() and value_cache.stride() == key_cache.stride(),
        local=local is not None, spans=runs is not None, columns=keys is not None,
        initial=initial is not None,
    )  # fmt: skip
    tiles = -(-tokens // tile)
    blocks = -(-tile * constants["ROWS"] // constants["BLOCK_M"])
    lists = 1 if keys is None else keys.shape[1]
    initial_out, initial_lse = (None, None) if initial is None else initial
    attend_tile_kernel[tiles * blocks, lanes](
        query, key_cache, value_cache, out, lse, sinks, initial_out, initial_lse, local, runs, keys,
        _ends(runs), _ends(keys), plan.kv_lens, plan.block_table, scale, softcap or 0.0, tokens, tile, blocks,
        sink_size,
        0 if runs is None else runs.shape[2], span, 0 if keys is None else keys.shape[2],
        lists, -(-tiles // lists), *(1 if x is None else lanes // len(x) for x in (local, runs, keys)),
        *query.stride(), *key_cache.stride(), *value_cache.stride(), *out.stride(), *lse.stride(),
        *((0, 0, 0) if initial_out is None else initial_out.stride()),
        *((0, 0) if initial_lse is None else initial_lse.stride()),
        **constants,
    )  # fmt: skip
    return out, lse


def _ends(lists: Tensor | None) -> Tensor | None:
    """int32 [H, lists], entries up to the last one that names a key: padding behind it costs nothing."""
    if lists is None:
        return None
    places = torch.arange(1, lists.shape[2] + 1, dtype=torch.int32, device=lists.device)
    return (places * (lists >= 0)).amax(-1)


def tile_constants(
    key_dim: int, value_dim: int, num_heads: int, num_kv_heads: int, lanes: int, page_size: int, tile: int,
    *, exact: bool, softcap: bool, sinks: bool, shared: bool, local: bool, spans: bool, columns: bool,
    initial: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that specialises the kernel, `num_warps` and `num_stages` included."""
    rows = num_heads // lanes  # query heads that read the same list of a KV head
    constants = kernel_constants(
        key_dim, value_dim, num_heads // num_kv_heads, page_size, block_rows(tile * rows, key_dim, exact),
        exact=exact, split=False, window=False, softcap=softcap, sinks=sinks, shared=shared,
    )  # fmt: skip
    del constants["WINDOW"], constants["SPLIT"]
    return constants | {
        "ROWS": rows, "LOCAL": local, "SPANS": spans, "COLUMNS": columns, "INITIAL": initial,
    }  # fmt: skip
