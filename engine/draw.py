"""Draws one token per row: filters keep a prefix of the ranked row, a uniform number picks from what is kept.

Rows never mix, and a row's result depends on nothing but its own logits, settings and uniform number.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# The kept prefix nearly always ends within so many candidates; a row where it does not is ranked completely.
CANDIDATES = 1024


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) made of `seed` and `index` alone: BLAKE2b as a counter-based generator."""
    # 48 bits: their product with a float64 sum is always below that sum.
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


@dataclass(frozen=True, slots=True)
class Draws:
    """Settings of the rows to draw from, each a float64 or int64 tensor [R].

    Attributes:
        temperature: above 0.
        top_k: at least 1; the vocabulary's size is off.
        top_p: above 0; infinity is off.
        min_p: share of the best token's probability that a token needs; 0 is off.
        uniform: the random numbers, in [0, 1).
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    def rows(self, index: Tensor) -> "Draws":
        """The settings of some of the rows."""
        return Draws(
            self.temperature[index],
            self.top_k[index],
            self.top_p[index],
            self.min_p[index],
            self.uniform[index],
        )


def ranked(logits: Tensor, width: int) -> Tensor:
    """Ids [R, width] of the best columns of float32 `logits` [R, V], best first, equal ones by lowest id."""
    vocab_size = logits.shape[-1]
    order = (logits + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    order ^= (order >> 31) & 0x7FFFFFFF  # now the integers are in the order of the floats
    keys = order.to(torch.int64)
    keys <<= 32
    keys += torch.arange(vocab_size - 1, -1, -1, device=logits.device)
    return vocab_size - 1 - (keys.topk(width, dim=-1).values & 0xFFFFFFFF)


def draw(logits: Tensor, draws: Draws) -> Tensor:
    """Tokens int64 [R] from float32 `logits` [R, V] by temperature alone."""
    return _invert(_weights(logits, logits, draws).cumsum(-1), draws.uniform)


def draw_filtered(logits: Tensor, draws: Draws, width: int = CANDIDATES) -> Tensor:
    """Tokens int64 [R] from float32 `logits` [R, V]: temperature, then top-k, then top-p of what is left,
    then min-p, in Hugging Face's meaning of each.

    Each filter keeps a prefix of the ranked row. `width` columns are ranked at first, and all of them for
    the rows whose prefix does not end there.
    """
    vocab_size = logits.shape[-1]
    width = min(width, vocab_size)
    ids = ranked(logits, width)
    weights = _weights(logits.gather(-1, ids), logits, draws)
    keep = torch.arange(width, device=logits.device) < draws.top_k[:, None]
    mass = (weights * keep).cumsum(-1)
    total = mass[:, -1]
    without_top_k = draws.top_k == vocab_size
    if bool((without_top_k & (draws.top_p < 1)).any()):
        total = torch.where(without_top_k, _weights(logits, logits, draws).sum(-1), total)
    keep &= mass - weights < (draws.top_p * total)[:, None]
    keep &= weights >= draws.min_p[:, None]
    chosen = _invert((weights * keep).cumsum(-1), draws.uniform)
    tokens = ids.gather(-1, chosen[:, None]).squeeze(-1)
    unsettled = ((draws.top_k > width) & (keep[:, -1] | ~without_top_k)).nonzero().squeeze(-1)
    if len(unsettled):
        tokens[unsettled] = draw_filtered(logits[unsettled], draws.rows(unsettled), vocab_size)
    return tokens


def _weights(values: Tensor, logits: Tensor, draws: Draws) -> Tensor:
    """Probabilities of `values` [R, W], float64, relative to the best of the row: at most 1."""
    best = logits.max(-1, keepdim=True).values.double()
    return values.double().sub_(best).div_(draws.temperature[:, None]).exp_()


def _invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """First column of `cumulative` [R, W] above `uniform` × its last; a broken row gives any valid column."""
    target = uniform * cumulative[:, -1]
    column = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)
    return column.clamp_(max=cumulative.shape[-1] - 1)
