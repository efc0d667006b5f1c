"""tile_attention on a CPU: each tile's keys copied side by side, one flash call, parts merged by log-sum-exp.

Measured on Zen 3, one thread: copying keys, runs as well as single ones, costs 5-10 % of the attention of 128
rows to them, and reading runs where they lie, with the other heads' keys in between, costs as much. So
everything but the diagonal is copied, list by list; lists of equal length share a call, so that nothing is
padded or masked. Threads share the tiles. Those that read everything go the way of dense attention.
"""

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from headway.kernels.cpu_workers import share_out
from headway.kernels.paged_attention.cpu import paged_attention
from headway.kernels.paged_attention.cpu_cache import CpuCache
from headway.kernels.paged_attention.cpu_schedule import Sequence
from headway.kernels.paged_attention.merging import add_sinks
from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.paged_attention.plan import plan as plan_of
from headway.kernels.tile_attention.cpu_chunk import ChunkRows, add
from headway.kernels.tile_attention.cpu_lists import TileLists


def tile_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, tile: int,
    local_from: Tensor | None, sink_size: int, spans: Tensor | None, span: int, columns: Tensor | None,
    scale: float, softcap: float | None, sinks: Tensor | None, initial: tuple[Tensor, Tensor] | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    kv = CpuCache(key_cache, value_cache)
    lists = TileLists.of(plan, tile, local_from, sink_size, spans, span, columns)
    wide = kv.widen(query)
    result = torch.empty((*query.shape[:2], kv.value_dim), dtype=torch.float32)
    lse = torch.empty(query.shape[:2], dtype=torch.float32)
    sparse = np.flatnonzero(~lists.dense.all(0)).tolist()

    def attend_tiles(tiles: range) -> None:
        rows = slice(tiles.start * tile, tiles.stop * tile)
        chunk = ChunkRows(wide[rows], kv, len(lists.dense), tile, scale, softcap)
        for begin, end, slots in chain(lists.common(tiles), lists.of_tiles(tiles)):
            chunk.attend(begin - tiles.start, end - tiles.start, slots)
        chunk.write(result[rows], lse[rows])
        if local_from is not None:
            one = Sequence.of(plan, 0, kv.cost.flat)
            start = one.position + rows.start
            key, value = kv.load(one.piece(start, min(start + len(tiles) * tile, one.kv_len)))
            chunk.add_diagonal(key, value, result[rows], lse[rows])

    if sparse:
        share_out(attend_tiles, range(sparse[0], sparse[-1] + 1))
    per_kv_head, per_list = query.shape[1] // kv.num_kv_heads, query.shape[1] // len(lists.dense)
    for run in lists.dense_runs(per_kv_head):
        heads = slice(run.head * per_list, run.stop_head * per_list)
        kv_heads = slice(heads.start // per_kv_head, -(-heads.stop // per_kv_head))
        rows = slice(run.first * tile, min(run.stop * tile, plan.num_tokens))
        _, lse[rows, heads] = paged_attention(
            wide[rows, heads], key_cache[:, :, kv_heads], value_cache[:, :, kv_heads], _part(plan, rows),
            scale, None, softcap, None, result[rows, heads],
        )  # fmt: skip
    if initial is not None:
        add(result, lse, *initial)
    if sinks is not None:
        add_sinks(result, lse, sinks)
    return result.to(query.dtype) if out is None else out.copy_(result), lse


def _part(plan: AttentionPlan, rows: slice) -> AttentionPlan:
    """Of one sequence's rows, with all keys before them."""
    tokens = rows.stop - rows.start
    if tokens == plan.num_tokens:
        return plan
    kv_len = plan.host_kv_lens[0] - plan.num_tokens + rows.stop
    return plan_of([tokens], [kv_len], plan.host_tables, plan.page_size, plan.device)
