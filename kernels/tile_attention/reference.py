"""What tile_attention computes, in fp32, with a whole mask."""

import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan


def tile_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, tile: int,
    local_from: Tensor | None, sink_size: int, spans: Tensor | None, span: int, columns: Tensor | None,
    scale: float, softcap: float | None, sinks: Tensor | None, initial: tuple[Tensor, Tensor] | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    heads, length = query.shape[1], plan.host_kv_lens[0]
    group = heads // key_cache.shape[2]
    table = plan.block_table[0].long()
    key, value = (
        cache[table].flatten(0, 1)[:length].float().repeat_interleave(group, 1)
        for cache in (key_cache, value_cache)
    )
    scores = torch.einsum("thd,nhd->htn", query.float(), key) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    seen = read_mask(plan, heads, tile, local_from, sink_size, spans, span, columns)
    scores = scores.masked_fill(~seen, float("-inf"))
    value = value.masked_fill(~seen.any(1).T.unsqueeze(-1), 0.0)  # cells that nobody reads may hold NaN
    lse = torch.logsumexp(scores, -1)  # [Hq, T]
    if initial is not None:
        lse = torch.logaddexp(lse, initial[1].T)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float().unsqueeze(1))
    safe = lse.masked_fill(lse == float("-inf"), 0.0)
    result = torch.einsum("htn,nhd->thd", (scores - safe.unsqueeze(-1)).exp(), value)
    if initial is not None:
        result += initial[0].float() * (initial[1] - safe.T).exp().unsqueeze(-1)
    result = result.to(query.dtype)
    return result if out is None else out.copy_(result), lse.T.contiguous()


def read_mask(
    plan: AttentionPlan, heads: int, tile: int, local_from: Tensor | None, sink_size: int,
    spans: Tensor | None, span: int, columns: Tensor | None,
) -> Tensor:  # fmt: skip
    """bool [Hq, T, N]: which keys each row reads."""
    tokens, length = plan.num_tokens, plan.host_kv_lens[0]
    tiles = -(-tokens // tile)
    first_row = length - tokens
    place = torch.arange(length)
    seen = torch.zeros(heads, tiles, length, dtype=torch.bool)
    starts = torch.arange(tiles) * tile + first_row
    local = starts.expand(heads, -1) if local_from is None else _each_head(local_from.cpu().long(), heads)
    local = torch.minimum(local, starts)
    for numbers, width in ((spans, span), (columns, 1)):
        if numbers is None:
            continue
        lists = _each_head(numbers.cpu().long(), heads)
        lists = lists.repeat_interleave(-(-tiles // lists.shape[1]), 1)[:, :tiles]
        for head in range(heads):
            for row in range(tiles):
                for begin in lists[head, row][lists[head, row] >= 0].tolist():
                    seen[head, row, begin : begin + width] = True
    seen &= place < local.unsqueeze(-1)
    if local_from is not None:
        seen |= (place >= local.unsqueeze(-1)) | (place < sink_size)
    rows = seen.repeat_interleave(tile, 1)[:, :tokens]
    return rows & (place <= torch.arange(first_row, length).unsqueeze(1))


def _each_head(numbers: Tensor, heads: int) -> Tensor:
    return numbers.repeat_interleave(heads // numbers.shape[0], 0)
