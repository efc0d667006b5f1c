"""last_queries on a CPU: exponentials of a KV head's scores, each kept for one second look.

All query heads of a KV head share one product, and their scores become powers of two as they are: fp32 has
room for what a softmax meets, and a pass that looks for maxima is saved. Rows whose sum says that it had not
are done again with their maxima taken off. Once the sums are known, a weight for each row turns its powers
into probabilities, and both results are products with those weights.

Measured on Zen 3, one thread: `exp2` takes half the time of `exp`; a product of 32 rows costs twice as much a
score as one of 128; sums over 8,192 columns half as much as over 1,024; mapping fresh memory for the powers a
sixth of all.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from headway.kernels.cpu_scratch import Scratch
from headway.kernels.paged_attention.cpu_cache import CpuCache
from headway.kernels.paged_attention.cpu_schedule import Sequence
from headway.kernels.paged_attention.plan import AttentionPlan

BLOCK = 8192  # keys
SCRATCH = 16 * 1024 * 1024  # numbers kept for the second look, about: 64 MiB
LEAST, MOST = 2.0**-64, 2.0**100  # sums between them lose nothing that counts, and none of their parts
LOG2E = math.log2(math.e)

_scratch = Scratch()


class Block(NamedTuple):
    """Keys [first, first + n) of the sequence, and where G heads' R rows with them are kept."""

    first: int
    keys: Tensor  # [n, Hkv, D]
    powers: Tensor  # [G, R, n]
    skewed: Tensor  # [G, R, n + R]: column c holds what lies at key - row = first - R + c, zeros elsewhere


class Rows(NamedTuple):
    """Some rows of one KV head's G query heads, the first of them at `position`; all logits to base 2."""

    query: Tensor  # [G * R, D], scaled
    kv_head: int
    position: int
    softcap: float | None
    sinks: Tensor | None  # [G, 1]


def last_queries(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, scale: float, softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, dim = query.shape
    length = plan.host_kv_lens[0]
    kv = CpuCache(key_cache, key_cache)
    one = Sequence.of(plan, 0, kv.cost.flat)
    firsts = range(0, length, BLOCK)
    keys = [kv.load(one.piece(first, min(first + BLOCK, length)))[0].float() for first in firsts]
    group = heads // kv.num_kv_heads
    scaled = (query.float() * (scale * LOG2E)).transpose(0, 1)
    cap = None if softcap is None else softcap * LOG2E
    sink_logits = None if sinks is None else (sinks.float() * LOG2E).unsqueeze(1)
    sums = torch.zeros(heads, length), torch.zeros(heads, length)
    parts = min(rows, -(-rows * group * length // SCRATCH))
    at_once = -(-rows // parts)
    size = sum(_size(each, group, at_once) for each in keys)
    memory = _scratch.take("powers", (size,), torch.float32)
    for row in range(0, rows, at_once):
        some = scaled[:, row : row + at_once]
        blocks = _blocks(memory, firsts, keys, group, some.shape[1])
        for kv_head in range(kv.num_kv_heads):
            own = slice(kv_head * group, (kv_head + 1) * group)
            own_sinks = None if sink_logits is None else sink_logits[own]
            these = Rows(some[own].reshape(-1, dim), kv_head, length - rows + row, cap, own_sinks)
            _add(blocks, _weights(these, blocks), these.position, *(each[own] for each in sums))
    return sums


def _size(keys: Tensor, heads: int, rows: int) -> int:
    """Numbers of a block."""
    return heads * rows * (len(keys) + rows) + rows


def _blocks(memory: Tensor, firsts: range, keys: list[Tensor], heads: int, rows: int) -> list[Block]:
    """One behind the other in memory that is enough for them."""
    blocks, used = [], 0
    for first, each in zip(firsts, keys, strict=True):
        # A row one cell longer than it is, read from the same memory, brings diagonals under each other; the
        # zeros before each row, and behind the last, are what it finds beyond its end.
        cells = memory[used : (used := used + _size(each, heads, rows))]
        width = len(each) + rows
        powers = cells[:-rows].view(heads, rows, width)
        powers[..., :rows] = 0.0
        cells[-rows:] = 0.0
        skewed = cells.as_strided((heads, rows, width), (rows * width, width + 1, 1))
        blocks.append(Block(first, each, powers[..., rows:], skewed))
    return blocks


def _weights(rows: Rows, blocks: list[Block]) -> Tensor:
    """Fill the blocks; the weights [G, R] that make their powers probabilities."""
    sums = _exponentiate(rows, blocks, None)
    if not ((sums > LEAST) & (sums < MOST)).all():
        peaks = torch.stack([_score(rows, block).amax(-1) for block in blocks]).amax(0)
        if rows.sinks is not None:
            peaks = torch.maximum(peaks, rows.sinks)
        sums = _exponentiate(rows, blocks, peaks)
    return sums.reciprocal_()


def _exponentiate(rows: Rows, blocks: list[Block], peaks: Tensor | None) -> Tensor:
    """Fill the blocks with powers of two of the scores less `peaks` [G, R], None: 0; their sums [G, R]."""
    sums = torch.zeros(blocks[0].powers.shape[:2])
    if rows.sinks is not None:
        sums += torch.exp2(rows.sinks if peaks is None else rows.sinks - peaks)
    for block in blocks:
        scores = _score(rows, block)
        if peaks is not None:
            scores.sub_(peaks.unsqueeze(-1))
        sums += scores.exp2_().sum(-1)
    return sums


def _score(rows: Rows, block: Block) -> Tensor:
    """Fill a block with scores, -inf where a row does not see a key; its [G, R, n]."""
    scores, (first, keys, powers, _) = block.powers.flatten(0, 1), block
    torch.mm(rows.query, keys[:, rows.kv_head].T, out=scores)
    if rows.softcap is not None:
        scores.div_(rows.softcap).tanh_().mul_(rows.softcap)
    seen = min(max(0, rows.position + 1 - first), len(keys))  # by all rows
    if seen < len(keys):
        late = torch.ones(powers.shape[1], len(keys) - seen, dtype=torch.bool)
        powers[..., seen:].masked_fill_(late.triu_(rows.position + 1 - first - seen), -torch.inf)
    return powers


def _add(blocks: list[Block], weights: Tensor, position: int, vertical: Tensor, slash: Tensor) -> None:
    """Add to the vertical and slash [G, N] of one KV head's query heads."""
    heads, rows = weights.shape
    diagonals = torch.zeros(heads, vertical.shape[1] + rows)  # at key - row + R
    for block in blocks:
        columns = vertical[:, block.first : block.first + block.powers.shape[-1]]
        skewed_columns = diagonals[:, block.first : block.first + block.skewed.shape[-1]]
        for head, weight in enumerate(weights):  # both while a head's powers are in the cache
            columns[head].addmv_(block.powers[head].T, weight)
            skewed_columns[head].addmv_(block.skewed[head].T, weight)
    main = position + rows
    slash[:, :main] += diagonals[:, 1 : main + 1].flip(1)
