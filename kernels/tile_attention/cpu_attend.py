"""Attention over keys side by side: PyTorch's flash kernel, or plain softmax where that cannot go."""

import torch
from torch import Tensor

SCORES = 1024 * 1024  # of one block of rows: 4 MiB of fp32 stay in the cache


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """query `[B, Hq, R, Dk]`, key `[B, Hkv, N, Dk]`, value `[B, Hkv, N, Dv]`; lse `[B, Hq, R]`, natural log.

    `causal`: row r sees the keys up to r.
    """
    if softcap is None and key.shape[3] == value.shape[3]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(  # type: ignore[no-any-return]
            query, key, value, 0.0, causal, scale=scale
        )
    out = torch.empty((*query.shape[:3], value.shape[3]), dtype=torch.float32)
    lse = torch.empty(query.shape[:3], dtype=torch.float32)
    rows, step = query.shape[2], max(1, SCORES // (query.shape[1] * key.shape[2]))
    for b in range(query.shape[0]):
        for start in range(0, rows, step):
            block = b, slice(None), slice(start, start + step)
            hidden = start if causal else None
            out[block], lse[block] = _softmax(query[block], key[b], value[b], scale, softcap, hidden)
    return out, lse


def _softmax(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, first: int | None
) -> tuple[Tensor, Tensor]:
    """query `[Hq, R, Dk]`, key `[Hkv, N, Dk]`; `first`: the number of the first row, if rows are causal."""
    grouped = query.view(key.shape[0], -1, *query.shape[1:])  # [Hkv, G, R, Dk]
    scores = torch.matmul(grouped, key.unsqueeze(1).transpose(2, 3)).float().mul_(scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if first is not None:
        seen = torch.ones(scores.shape[2:], dtype=torch.bool).tril_(first)
        scores.masked_fill_(~seen, float("-inf"))
    lse = torch.logsumexp(scores, -1)
    weights = scores.sub_(lse.unsqueeze(-1)).exp_()
    return torch.matmul(weights.to(value.dtype), value.unsqueeze(1)).flatten(0, 1), lse.flatten(0, 1)
