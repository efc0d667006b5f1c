"""last_queries on a CPU: blocks of scores that stay in the CPU's cache, each kept for one second look.

A block is exponentiated against its own row maxima; once all blocks' sums are known, a weight for each row
turns it into probabilities, and both sums are products with those weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_cache import CpuCache
from headway.kernels.paged_attention.cpu_schedule import Sequence
from headway.kernels.paged_attention.plan import AttentionPlan

BLOCK = 2048  # keys; with 64 rows of fp32 scores 512 KiB, what a core has for itself
SCRATCH = 16 * 1024 * 1024  # numbers kept for the second look: 64 MiB
LOWEST = torch.finfo(torch.float32).min


class Block(NamedTuple):
    """Keys [first, first + n) of the sequence, and where the scores of R rows with them are kept."""

    first: int
    keys: Tensor  # [n, Hkv, D]
    scores: Tensor  # [R, n]
    skewed: Tensor  # [R, n + R]: column c holds what lies at key - row = first - R + c, zeros elsewhere


def last_queries(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, _ = query.shape
    length = plan.host_kv_lens[0]
    kv = CpuCache(key_cache, key_cache)
    one = Sequence.of(plan, 0, kv.cost.flat)
    firsts = range(0, length, BLOCK)
    keys = [kv.load(one.piece(first, min(first + BLOCK, length)))[0].float() for first in firsts]
    scaled = query.float() * scale
    vertical, slash = torch.zeros(heads, length), torch.zeros(heads, length)
    group_size = heads // kv.num_kv_heads
    at_once = max(1, min(rows, SCRATCH // length))
    for row in range(0, rows, at_once):
        some = scaled[row : row + at_once]
        blocks = [_block(first, each, len(some)) for first, each in zip(firsts, keys, strict=True)]
        position = length - rows + row  # of the first of these rows
        for head in range(heads):
            sink = None if sinks is None else sinks[head].float()
            weights = _score(some[:, head], blocks, head // group_size, position, softcap, sink)
            _add(blocks, weights, position, vertical[head], slash[head])
    return vertical, slash


def _block(first: int, keys: Tensor, rows: int) -> Block:
    width = len(keys) + rows
    # A row one cell longer than it is, read from the same memory, brings diagonals under each other; the
    # zeros before each row are what it finds beyond its end.
    cells = torch.zeros(rows * width + rows)
    scores = cells[: rows * width].view(rows, width)[:, rows:]
    return Block(first, keys, scores, cells.as_strided((rows, width), (width + 1, 1)))


def _score(
    query: Tensor, blocks: list[Block], kv_head: int, position: int, softcap: float | None,
    sink: Tensor | None,
) -> Tensor:  # fmt: skip
    """Fill the blocks for one head's rows [R, D]; the weights [blocks, R] that make them probabilities."""
    rows = len(query)
    peaks, sums = torch.empty(len(blocks), rows), torch.empty(len(blocks), rows)
    for block, peak, total in zip(blocks, peaks, sums, strict=True):
        scores = block.scores
        torch.mm(query, block.keys[:, kv_head].T, out=scores)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if block.first + scores.shape[1] > position:
            late = torch.ones_like(scores, dtype=torch.bool).triu_(position - block.first + 1)
            scores.masked_fill_(late, -torch.inf)
        torch.amax(scores, 1, out=peak)
        peak.clamp_min_(LOWEST)  # of a row that ends before the block
        torch.sum(scores.sub_(peak.unsqueeze(1)).exp_(), 1, out=total)
    lse = torch.logsumexp(peaks + sums.log(), 0)
    if sink is not None:
        lse = torch.logaddexp(lse, sink)
    return (peaks - lse).exp_()


def _add(blocks: list[Block], weights: Tensor, position: int, vertical: Tensor, slash: Tensor) -> None:
    """Add one head's sums to its vertical and slash [N]."""
    rows = weights.shape[1]
    diagonals = torch.zeros(len(vertical) + rows)  # at key - row + R
    for block, weight in zip(blocks, weights, strict=True):
        vertical[block.first : block.first + block.scores.shape[1]].addmv_(block.scores.T, weight)
        diagonals[block.first : block.first + block.skewed.shape[1]].addmv_(block.skewed.T, weight)
    main = position + rows
    slash[:main] += diagonals[1 : main + 1].flip(0)
