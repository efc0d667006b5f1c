"""antidiagonal_mass on a CPU: products of `stride * D` long vectors, a piece of the keys at a time.

A piece's scores lie with the queries of a KV group in the last dimension, so that what follows the product
runs along it; each piece keeps its own maximum until all are there.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.kernels.paged_attention.plan import AttentionPlan, Numbers

PIECE_NUMBERS = 2**19  # scores of a piece, 2 MiB: they are read thrice


def antidiagonal_mass(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, block: int, stride: int, scale: float,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    length = plan.host_kv_lens[0]
    groups = _query_groups(query, stride, scale).chunk(key_cache.shape[2])
    return torch.cat(
        [
            _head_mass(rows, key_cache[:, :, kv_head], plan.host_tables[0], length, block, stride, softcap)
            for kv_head, rows in enumerate(groups)
        ]
    )


def _query_groups(query: Tensor, stride: int, scale: float) -> Tensor:
    """[Hq, m, stride * D], groups in reverse order, times what makes a mean of a sum over a group."""
    tokens = len(query)
    rows = query.float() * (scale / stride)
    cut = tokens % stride
    if cut:
        rows[-cut:] *= stride / cut
    rows = pad(rows, (0, 0, 0, 0, 0, -tokens % stride)).view(-1, stride, *query.shape[1:])
    return rows.flip(1).permute(2, 0, 1, 3).flatten(2)


def _head_mass(
    queries: Tensor, keys: Tensor, pages: Numbers, length: int, block: int, stride: int,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    """queries `[G, m, stride * D]`, keys of one head `[num_pages, page_size, D]` → `[G, tiles, blocks]`"""
    heads, groups, _ = queries.shape
    per_block = block // stride
    before = -(-length // stride) - groups
    rows = queries.flatten(0, 1).T
    step = max(1, PIECE_NUMBERS // (rows.shape[1] * per_block)) * block
    sums, peaks = [], []
    for start in range(0, length, step):
        scores = _key_groups(keys, pages, start, min(start + step, length), stride) @ rows
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        key_group = torch.arange(len(scores)) + (start // stride - before)
        if key_group[-1] > 0:
            later = key_group.unsqueeze(1) > torch.arange(groups)
            scores.view(-1, heads, groups).masked_fill_(later.unsqueeze(1), float("-inf"))
        peak = scores.amax(0).clamp_min_(torch.finfo(torch.float32).min)  # a row may see no key of a piece
        weights = _whole(scores.sub_(peak).exp_(), per_block)
        sums.append(weights.view(-1, per_block, heads * groups).sum(1))  # [blocks, G * m]
        peaks.append(peak)
    highest = torch.stack(peaks).amax(0)
    mass = torch.cat([part.mul_((peak - highest).exp_()) for part, peak in zip(sums, peaks, strict=True)])
    mass = (mass / mass.sum(0)).T.reshape(heads, groups, -1)
    return torch.stack([mass[:, at : at + per_block].mean(1) for at in range(0, groups, per_block)], 1)


def _key_groups(keys: Tensor, pages: Numbers, start: int, stop: int, stride: int) -> Tensor:
    """fp32 `[n, stride * D]` of the keys at [start, stop), zeros behind the end."""
    size = keys.shape[1]
    first = start // size
    some = pages[first : -(-stop // size)]
    if some[-1] - some[0] == len(some) - 1 and (some[1:] > some[:-1]).all():
        found = keys[int(some[0]) : int(some[-1]) + 1]
    else:
        found = keys.index_select(0, torch.from_numpy(some))
    rows = found.reshape(-1, keys.shape[2])[start - first * size : stop - first * size].float()
    return _whole(rows, stride).reshape(-1, stride * keys.shape[2])


def _whole(rows: Tensor, count: int) -> Tensor:
    """With zeros behind, up to a multiple of `count` rows."""
    return pad(rows, (0, 0, 0, -len(rows) % count)) if len(rows) % count else rows
