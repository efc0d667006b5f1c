"""Which chunks of a prompt are timed, and what the whole prompt costs by those."""

from collections.abc import Mapping, Sequence

import numpy as np

Chunks = Sequence[tuple[int, int]]
"""First token and length of each chunk of a prompt, in order."""


def sampled(chunks: Chunks, count: int, dense_below: int | None) -> list[int]:
    """Which chunks to time: `count` of them evenly spread, and both sides of every jump of the cost.

    It jumps where the dense beginning ends, and at the last chunk, which holds the dense tail; with None
    all is dense and nothing jumps.
    """
    last = len(chunks) - 1
    picked = {round(place) for place in np.linspace(0, last, count)} | {0, last}
    if dense_below is not None:
        picked |= {
            i for i, (start, length) in enumerate(chunks) if -length < dense_below - start < 2 * length
        }
        picked.add(max(last - 1, 0))
    return sorted(picked)


def total(chunks: Chunks, costs: Mapping[int, float]) -> float:
    """What all chunks cost, where `costs` knows some, the first and the last among them.

    A chunk between two known ones costs, per token, what the line between them says at its middle:
    attention's cost is linear in the position if the share of keys that it reads does not change.
    """
    known = sorted(costs)
    middle = [start + length / 2 for start, length in chunks]
    length = [length for _, length in chunks]
    per_token = np.interp(middle, [middle[i] for i in known], [costs[i] / length[i] for i in known])
    return float(per_token @ length)


def causal_pairs(start: int, length: int) -> int:
    """Pairs of a query and a key that dense attention reads in a chunk, per head."""
    return length * start + length * (length + 1) // 2


def by_square(length: int, seconds: Mapping[int, float]) -> float:
    """Seconds that `length` tokens take: measured, or by a·n + b·n² through two shorter lengths.

    Where noise makes a or b negative, it is left out, and the longer of the two decides alone.
    """
    if length in seconds:
        return seconds[length]
    (short, short_seconds), (long, long_seconds) = sorted(seconds.items())
    per_token = long_seconds / long
    square = (per_token - short_seconds / short) / (long - short)
    square = min(max(square, 0.0), per_token / long)
    return length * (per_token + square * (length - long))
