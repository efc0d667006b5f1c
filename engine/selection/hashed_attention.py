"""HyperAttention's estimate of unmasked attention (arXiv 2310.05869): hashed blocks, samples of the rest."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class HashedAttention(NamedTuple):
    """Two parts to merge by lse: each query's block and its samples.

    Attributes:
        out, lse: [2, G, R, Dv] and [2, G, R]; a part that reads no key has lse -inf and any out.
        pairs: int64 scalar, what both read.
    """

    out: Tensor
    lse: Tensor
    pairs: Tensor


def hashed_attention(
    query: Tensor, key: Tensor, value: Tensor, directions: Tensor, drawn: Tensor, block: int,
    scale: float, softcap: float | None,
) -> HashedAttention:  # fmt: skip
    """Estimate the attention of a KV group's queries to all of its keys.

    Sorted by hash, queries and keys are cut into equally many blocks, of at least `block` keys; block reads
    block. The drawn keys outside a query's block stand for all keys there are outside it: over uniform draws,
    exp(lse) and out * exp(lse), summed over both parts, have the exact sums as their expectation.

    Args:
        query: fp32 [G, R, Dk].
        key, value: fp32 [N, Dk] and [N, Dv].
        directions: fp32 [Dk, projections].
        drawn: int64 [S], indices of keys, with replacement.
    """
    rows, length = query.shape[1], len(key)
    height = -(-rows // max(1, min(rows, length // block)))  # queries of a block
    blocks = -(-rows // height)
    ends = torch.arange(1, blocks + 1, device=key.device) * length // blocks
    sizes = ends.diff(prepend=ends.new_zeros(1))  # keys of each block
    key_order, query_order = _by_hash(key, directions), _by_hash(query, directions)
    key_rank, query_rank = key_order.argsort(), query_order.argsort()

    place = torch.arange(-(-length // blocks), device=key.device)
    at = (ends - sizes).unsqueeze(1) + place
    beyond = at >= ends.unsqueeze(1)
    of_block = key_order[at.clamp_max(length - 1)]  # [blocks, keys]
    sorted_rows = torch.arange(blocks * height, device=key.device).clamp_max(rows - 1)
    of_rows = query_order[:, sorted_rows, None]  # [G, blocks * queries, 1]
    queries = query.take_along_dim(of_rows, 1).view(len(query), blocks, height, -1)
    out, lse = _attend(queries, key[of_block], value[of_block], beyond.unsqueeze(1), scale, softcap)
    out = out.flatten(1, 2).take_along_dim(query_rank.unsqueeze(-1), 1)
    lse = lse.flatten(1, 2).take_along_dim(query_rank, 1)

    row_block = query_rank // height  # [G, R]
    drawn_block = torch.searchsorted(ends, key_rank[drawn], right=True)  # [S]
    counted = row_block.unsqueeze(-1) == drawn_block
    rest, rest_lse = _attend(query, key[drawn], value[drawn], counted, scale, softcap)
    rest_lse = rest_lse + math.log(length / len(drawn))
    pairs = sizes[row_block].sum() + (~counted).sum()
    return HashedAttention(torch.stack((out, rest)), torch.stack((lse, rest_lse)), pairs)


def _by_hash(rows: Tensor, directions: Tensor) -> Tensor:
    """The order of rows [..., N, D] in which neighbouring hashes differ in one sign: a Gray code's."""
    signs = (rows @ directions > 0).long()
    digits = signs.cumsum(-1) % 2
    weights = 2 ** torch.arange(signs.shape[-1] - 1, -1, -1, device=rows.device)
    return (digits * weights).sum(-1).argsort(dim=-1, stable=True)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-2, -1) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)
