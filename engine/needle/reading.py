"""A haystack read once without gradients, and questions about it with them: long ones become affordable."""

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from headway.engine.needle.coding import Coder
from headway.engine.needle.mix import Batch, draw
from headway.engine.needle.model import CHUNK, Attend, Needle, windowed
from headway.engine.needle.tasks import make, split


@dataclass
class Reading:
    """A haystack and batches of questions that each stand directly behind it, blind to one another."""

    ids: Tensor
    questions: list[Batch]


def reading(rng: Random, coder: Coder, length: int, groups: int, tokens: int) -> Reading:
    """A haystack of about `length` tokens and up to `groups` batches of questions of `tokens` tokens."""
    while True:
        family, spec = draw(rng, length)
        sample = make(rng, coder, length, spec)
        sample.chat, sample.question_first = True, False
        prefix, tails = split(coder, sample, sample.questions[: groups * tokens // 20])
        if tails:
            break
    batches: list[Batch] = []
    while tails and len(batches) < groups:
        rows = [tails.pop()]
        while tails and sum(len(ask) + len(answer) for ask, answer in [*rows, tails[-1]]) <= tokens:
            rows.append(tails.pop())
        ids = [i for ask, answer in rows for i in ask + answer]
        owner = [o for row, (ask, answer) in enumerate(rows) for o in [-1] * len(ask) + [row] * len(answer)]
        positions = [len(prefix) + i for ask, answer in rows for i in range(len(ask) + len(answer))]
        batches.append(
            Batch(torch.tensor([ids]), torch.tensor([positions]), torch.tensor([owner]), [family] * len(rows))
        )
    return Reading(torch.tensor([prefix]), batches)


@torch.no_grad()
def read(model: Needle, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer [1, KV heads, N, d], each position seeing its surroundings."""
    kept: list[tuple[Tensor, Tensor]] = []
    surroundings = windowed(ids.shape[1] // CHUNK * CHUNK)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept.append((k, v))
        return surroundings(q, k, v)

    model.run(ids, torch.arange(ids.shape[1])[None], [attend] * len(model.layers))
    return kept


def answer(model: Needle, kept: list[tuple[Tensor, Tensor]], b: Batch) -> Tensor:
    """Hidden states [1, T, hidden] of questions behind a haystack that `read` has read."""
    n, t = kept[0][0].shape[2], b.ids.shape[1]
    place = torch.arange(t)
    starts = b.positions[0] == b.positions[0, 0]
    row = starts.cumsum(0)
    own = (row[:, None] == row[None, :]) & (place[None, :] <= place[:, None])
    mask = torch.cat((torch.ones(t, n, dtype=torch.bool), own), dim=1)

    def behind(k_seen: Tensor, v_seen: Tensor) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = torch.cat((k_seen, k), dim=2), torch.cat((v_seen, v), dim=2)
            return F.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=True)

        return attend

    return model.run(b.ids, b.positions, [behind(k, v) for k, v in kept])
