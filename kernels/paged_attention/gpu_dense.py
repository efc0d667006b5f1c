"""Long dense chunks on a GPU by a library's attention: the keys before the chunk without a mask, then the
chunk itself causal, merged by log-sum-exp.

cuDNN makes a plan, tens of milliseconds, for every shape it meets. So the causal square begins and ends at
multiples of BUCKET, with rows beside the chunk's own whose result is dropped, and the keys before it come in
tiles of TILE and a rest of whole buckets: a few dozen shapes in all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from headway.kernels.paged_attention.merging import add_part, add_sinks
from headway.kernels.paged_attention.plan import AttentionPlan

Backend = Callable[[Tensor, Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]
"""(query `[1, Hq, n, D]`, key and value `[1, Hkv, m, D]`, scale, causal) → out `[1, Hq, n, D]` and lse
`[1, Hq, n]` fp32, natural log. Causal is for n == m."""

BUCKET = 512
TILE = 16384  # a multiple of BUCKET: long enough that merging costs little beside attending
SHORTEST = 1024  # a shorter chunk would compute too many rows for nothing


def long_chunks(plan: AttentionPlan, window: int | None) -> list[int]:
    """The sequences of the batch that are worth a library's call, and whose window hides nothing."""
    lens = enumerate(zip(plan.host_q_lens, plan.host_kv_lens, strict=True))
    return [b for b, (q, kv) in lens if q >= SHORTEST and (window is None or window >= kv)]


def attend_chunk(
    backend: Backend, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    sequence: int, scale: float, sinks: Tensor | None, out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    """Attend one sequence: its rows query `[n, Hq, D]`, out `[n, Hq, D]` and lse `[n, Hq]`."""
    tokens, kv_len = query.shape[0], plan.host_kv_lens[sequence]
    position = kv_len - tokens
    begin = position // BUCKET * BUCKET
    end = -(-kv_len // BUCKET) * BUCKET
    rows = query.new_zeros(end - begin, *query.shape[1:])
    own = slice(position - begin, kv_len - begin)
    rows[own] = query
    square = rows.transpose(0, 1)[None]

    pages = plan.block_table[sequence]

    def attend(start: int, stop: int, causal: bool) -> tuple[Tensor, Tensor]:
        key, value = (
            _gather(cache, pages, start, min(stop, kv_len), stop) for cache in (key_cache, value_cache)
        )
        return backend(square, key, value, scale, causal)

    merged, merged_lse = attend(begin, end, True)
    for start in range(0, begin, TILE):
        merged, merged_lse = add_part(merged, merged_lse, *attend(start, min(start + TILE, begin), False))
    out.copy_(merged[0, :, own].transpose(0, 1))
    lse.copy_(merged_lse[0, :, own].T)
    if sinks is not None:
        add_sinks(out, lse, sinks)


def _gather(cache: Tensor, pages: Tensor, start: int, stop: int, end: int) -> Tensor:
    """The cells of positions [start, stop) as `[1, Hkv, end - start, D]`, zero from `stop` on: a kernel that
    masks a cell still multiplies it, and unused cells may hold NaN."""
    size = cache.shape[1]
    cells = cache[pages[start // size : -(-stop // size)]].flatten(0, 1)[start % size :][: stop - start]
    if stop < end:
        cells = torch.cat((cells, cells.new_zeros(end - stop, *cells.shape[1:])))
    return cells.transpose(0, 1)[None]
