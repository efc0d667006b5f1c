"""Which task at which length: the training mix and its batches."""

import math
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from headway.engine.needle.coding import Coder
from headway.engine.needle.tasks import Spec, encode, make

LENGTHS = [64 * 2**n for n in range(12)]
LONG = 4096  # from here on the haystack is read through a window; see `reading`
FILLERS = ["noise", "prose", "prose", "english", "english", "junk"]


@dataclass
class Batch:
    """ids, positions, answer [B, T]; answer: number of the answer a token belongs to, -1 outside."""

    ids: Tensor
    positions: Tensor
    answer: Tensor
    families: list[str]


@dataclass(frozen=True)
class Mix:
    """What a run is trained on once long haystacks are reached.

    `shares`: of LENGTHS in its steps. The others: chances of the harder tasks on long haystacks.
    """

    shares: tuple[int, ...]
    chains: float = 0.12
    values: float = 0.12
    queries: float = 0.15
    pairs: float = 0.3
    uuids: float = 0.1


MIXES = {
    "even": Mix(shares=(0, 0, 18, 18, 18, 8, 6, 7, 8, 8, 6, 3)),
    "lists": Mix(shares=(0, 0, 20, 22, 22, 14, 6, 6, 5, 4, 2, 0), chains=0.2, values=0.2),
    "keys": Mix(
        shares=(0, 0, 8, 10, 10, 4, 3, 4, 8, 12, 14, 8),
        chains=0.06,
        values=0.06,
        queries=0.2,
        pairs=0.5,
        uuids=0.2,
    ),
}


def _log_uniform(rng: Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def draw(rng: Random, length: int, mix: Mix = MIXES["even"]) -> tuple[str, Spec]:
    """A task family and its specification for one training sample."""
    if length <= 64 or (length <= 256 and rng.random() < 64 / length):
        digits = 3 if rng.random() < 0.6 else None
        return "short", Spec(layout="short", question_share=0.55, digits=digits, restate=0.2)
    spec = Spec(
        needles=rng.choice(("line", "sentence")),
        question_share=rng.uniform(0.25, 0.5) if length <= 512 else rng.uniform(0.1, 0.45),
        layout="plain" if length <= 128 or rng.random() < 0.3 else "free",
        separator=rng.choice(("\n", " ", "\n\n")),
        restate=rng.choice((0.0, 0.0, 0.3)),
        distant=0.4 if length >= 1024 else 0.0,
        # Long haystacks are few: each shall be asked about in many ways.
        wordings=5 if length >= LONG and rng.random() < 0.7 else 0,
    )
    if length >= 2048 and rng.random() < 0.25:
        # All keys there are, and prose that is full of the same words.
        return "line", replace(spec, keys="noun", needles="line", filler="prose", separator="\n")
    if length <= 128 and rng.random() < 0.7:
        return "plain", replace(spec, needles="line", separator="\n")
    if rng.random() < 0.65:
        low = 0.3 if length <= 256 else 0.03
        spec = replace(spec, filler=rng.choice(FILLERS), density=_log_uniform(rng, low, 1.0))
        if rng.random() < 0.15:
            spec = replace(spec, count=rng.randint(1, 4), question_share=min(0.15, spec.question_share))
    if spec.needles == "line" and spec.separator == " ":
        spec = replace(spec, separator="\n")
    # The harder tasks are learned where they are dense and cheap: on short haystacks.
    chains, values, queries = (0.2, 0.3, 0.12) if length < LONG else (mix.chains, mix.values, mix.queries)
    pairs, uuids = (0.3, 0.1) if length < LONG else (mix.pairs, mix.uuids)
    u = rng.random()
    if u < chains:
        count = rng.choice((1, 1, 2, 4, 8, 16) if length < LONG else (8, 16, 32))
        filler = rng.choice(FILLERS) if spec.filler == "none" else spec.filler  # chains alone fill nothing
        return "vt", replace(spec, hops=rng.randint(1, 4), count=count, separator="\n", filler=filler)
    if u < chains + values:
        keys = rng.choice(("noun", "pair"))
        return "many values", replace(spec, values_per_key=rng.randint(2, 4), uneven=True, keys=keys)
    if u < chains + values + queries:
        return "many queries", replace(spec, queries=rng.randint(2, 4), keys=rng.choice(("noun", "pair")))
    u = rng.random()
    if u < pairs:
        return "pair", replace(spec, keys=rng.choice(("pair", "hyphen")))
    if u < pairs + 0.12:
        return "name", replace(spec, keys=rng.choice(("name", "numbered")))
    if u < pairs + 0.12 + uuids:
        return "uuid", replace(spec, keys="uuid")
    return ("line" if spec.needles == "line" else "sentence"), spec


def skip(rng: Random, length: int, reach: int = 131072, jumps: int = 4) -> Tensor:
    """Positions [length] with a few jumps, their span log-uniform between the length and `reach`."""
    extra = max(0, int(_log_uniform(rng, length, max(length, reach))) - length)  # a logarithm rounds
    cuts = sorted(rng.randint(0, extra) for _ in range(jumps - 1))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, extra], strict=True)]
    steps = torch.ones(length, dtype=torch.long)
    steps[0] = 0
    for size in sizes:
        steps[rng.randint(1, length - 1)] += size
    return steps.cumsum(0)


def _copy(rng: Random, coder: Coder, length: int) -> tuple[list[int], list[tuple[int, int]]]:
    half = length // 2
    period = rng.randint(max(4, half // 4), half)
    segment = [rng.randrange(coder.system + 1, coder.tokenizer.get_vocab_size()) for _ in range(period)]
    ids = (segment * (length // period + 1))[:length]
    return ids, [(period, length)]


def batch(rng: Random, coder: Coder, length: int, rows: int, copies: float, skips: float) -> Batch:
    """Samples of the mix at one length below LONG."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    answer = torch.full((rows, length), -1, dtype=torch.long)
    positions = torch.arange(length).repeat(rows, 1)
    families: list[str] = []
    for row in range(rows):
        spans: list[tuple[int, int]] = []
        while not spans:
            if rng.random() < copies:
                family, (tokens, spans) = "copy", _copy(rng, coder, length)
            else:
                family, spec = draw(rng, length)
                sample = make(rng, coder, length, spec)
                tokens, spans = encode(sample, coder, length)
        ids[row, : len(tokens)] = torch.tensor(tokens)
        for start, stop in spans:
            answer[row, start:stop] = len(families)
            families.append(family)
        if rng.random() < skips:
            positions[row] = skip(rng, length)
    return Batch(ids, positions, answer, families)
