"""Online softmax over tiles of keys in plain PyTorch: for softcap, and for values of another head size."""

from collections.abc import Callable

import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_schedule import Piece, Sequence

QUERY_TILE = 512
SCORES = 512 * 1024  # per KV head: 2 MiB of fp32 scores stay in the cache


def attend_tiled(
    query: Tensor,
    sequence: Sequence,
    load: Callable[[Piece], tuple[Tensor, Tensor]],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """query `[n, Hq, Dk]` of one sequence; returns out `[n, Hq, Dv]` and lse `[n, Hq]`, both fp32."""
    outs, lses = [], []
    for start in range(0, sequence.q_len, QUERY_TILE):
        tile = query[start : start + QUERY_TILE]
        out, lse = _attend_rows(tile, sequence.position + start, sequence, load, scale, window, softcap)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def _attend_rows(
    query: Tensor,
    position: int,
    sequence: Sequence,
    load: Callable[[Piece], tuple[Tensor, Tensor]],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    tokens, heads, dim = query.shape
    end = position + tokens
    begin = 0 if window is None else max(0, position - window + 1)
    key_tile = max(256, SCORES // (tokens * heads))
    packed = out = peak = total = None
    num_kv_heads = 0
    for start in range(begin, end, key_tile):
        stop = min(start + key_tile, end)
        key, value = load(sequence.piece(start, stop))  # [N, Hkv, D]
        if packed is None:
            num_kv_heads = key.shape[1]
            grouped = (query * scale).reshape(tokens, num_kv_heads, -1, dim).transpose(0, 1)
            packed = grouped.reshape(num_kv_heads, -1, dim)  # [Hkv, n * G, Dk]
        # fp32 from here on: a running sum in bf16 loses the later keys
        scores = torch.matmul(packed, key.permute(1, 2, 0)).float()  # [Hkv, n * G, N]
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if stop > position + 1 or (window is not None and start <= end - 1 - window):
            hidden = _hidden(position, tokens, start, stop, window)
            scores.view(num_kv_heads, tokens, -1, stop - start).masked_fill_(
                hidden.unsqueeze(1), float("-inf")
            )
        new_peak = scores.amax(-1, keepdim=True)
        if peak is not None:
            new_peak = torch.maximum(peak, new_peak)
        weights = scores.sub_(new_peak.clamp_min(-1e30)).exp_()  # a row may see no key of this tile
        part = torch.matmul(weights.to(value.dtype), value.transpose(0, 1)).float()
        part_total = weights.sum(-1, keepdim=True)
        if out is None or peak is None or total is None:
            out, total = part, part_total
        else:
            keep = torch.exp(peak - new_peak.clamp_min(-1e30))
            out, total = part.addcmul_(out, keep), part_total.addcmul_(total, keep)
        peak = new_peak
    assert out is not None  # a query always sees itself
    assert peak is not None
    assert total is not None
    lse = (peak + torch.log(total)).reshape(out.shape[0], tokens, -1)
    out = (out / total).view(out.shape[0], tokens, -1, out.shape[2])
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1)


def _hidden(position: int, tokens: int, start: int, stop: int, window: int | None) -> Tensor:
    q_pos = torch.arange(position, position + tokens).unsqueeze(1)
    k_pos = torch.arange(start, stop)
    hidden = k_pos > q_pos
    return hidden if window is None else hidden | (k_pos <= q_pos - window)
