"""A haystack read once, and many questions about it: long ones become affordable."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from random import Random
from typing import cast

import torch
from torch import Tensor

from headway.engine.needle.behind import attend_behind
from headway.engine.needle.coding import Coder
from headway.engine.needle.mix import Batch, Mix, draw, skip
from headway.engine.needle.model import CHUNK, SINK, Attend, Layer, Needle, dense, windowed
from headway.engine.needle.tasks import Tail, make, split

END = 4 * CHUNK
"""Tokens at a haystack's end that layers which look no farther see."""


@dataclass
class Reading:
    """A haystack, its positions [n] and questions that each stand behind it, blind to one another."""

    ids: Tensor
    positions: Tensor
    questions: Batch


def reading(rng: Random, coder: Coder, length: int, tokens: int, mix: Mix, skips: float = 0.0) -> Reading:
    """A haystack of about `length` tokens and questions of up to `tokens` tokens with their answers.

    `skips`: how often its positions jump, so that it reaches as far as a longer one.
    """
    while True:
        family, spec = draw(rng, length, mix)
        total = length + tokens
        sample = make(rng, coder, total, replace(spec, question_share=tokens / total))
        sample.chat, sample.question_first = True, False
        prefix, rows = split(coder, sample, sample.questions)
        while sum(len(ask) + len(answer) for ask, answer in rows) > tokens:
            rows.pop()
        if rows:
            break
    n = len(prefix)
    positions = skip(rng, n) if rng.random() < skips else torch.arange(n)
    return Reading(torch.tensor([prefix]), positions, line_up(int(positions[-1]) + 1, rows, family))


def line_up(length: int, tails: list[Tail], family: str = "") -> Batch:
    """Questions with their answers as one row, each of them from position `length` on."""
    ids = [i for ask, answer in tails for i in ask + answer]
    owner = [o for row, (ask, answer) in enumerate(tails) for o in [-1] * len(ask) + [row] * len(answer)]
    positions = [length + i for ask, answer in tails for i in range(len(ask) + len(answer))]
    return Batch(torch.tensor([ids]), torch.tensor([positions]), torch.tensor([owner]), [family] * len(tails))


def read(
    model: Needle, ids: Tensor, far: Collection[int], positions: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [1, KV heads, n, d] that questions see of a haystack of N tokens, by layer.

    Of the layers `far`, those of all its tokens; of the others, of its beginning and its end. A token of
    the haystack itself sees its surroundings only; behind the last far layer's keys, only ends are computed.
    """
    n = ids.shape[1]
    ends = torch.cat((torch.arange(SINK), torch.arange(max(SINK, n - END), n)))
    kept: list[tuple[Tensor, Tensor]] = []
    surroundings = windowed(n // CHUNK * CHUNK) if n >= CHUNK else dense
    cos, sin = model.rope((torch.arange(n) if positions is None else positions)[None])
    x = model.embed_tokens(ids)
    for number, layer in enumerate(cast(list[Layer], model.layers)):
        k, v = layer.self_attn.keys_values(layer.input_layernorm(x), cos, sin)
        kept.append((k, v) if number in far or x.shape[1] < n else (k[:, :, ends], v[:, :, ends]))
        if number == max(far):
            x, cos, sin, surroundings = x[:, ends], cos[:, :, ends], sin[:, :, ends], dense
        x = layer(x, cos, sin, surroundings)
    return kept


def answer(model: Needle, kept: list[tuple[Tensor, Tensor]], b: Batch) -> Tensor:
    """Hidden states [1, T, hidden] of questions behind a haystack that `read` has read."""
    place = torch.arange(b.ids.shape[1])
    starts = b.positions[0] == b.positions[0, 0]
    row = starts.cumsum(0)
    own = (row[:, None] == row[None, :]) & (place[None, :] <= place[:, None])

    def behind(k_seen: Tensor, v_seen: Tensor) -> Attend:
        return lambda q, k, v: attend_behind(q, k_seen, v_seen, k, v, own)

    return model.run(b.ids, b.positions, [behind(k, v) for k, v in kept])
