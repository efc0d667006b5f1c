"""Which layers read everything and which reuse a list: the dynamic programme of HyLRA (arXiv 2602.00777).

A policy is a path over the layers: each takes over the list of the nearest full layer before it, or is full
itself. What a reuse costs is given; of two costs of a path, the largest and the sum, neither decides alone
what to keep of a state, so every state keeps its Pareto set: with the better one alone, as in UCM's code,
the programme misses optima.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class LayerPolicy:
    """A policy. `worst`, `total`: the largest and the sum of its layers' losses."""

    worst: float
    total: float
    full: tuple[int, ...]

    def reusing(self, loss: float) -> "LayerPolicy":
        """With one more layer that reuses the last list."""
        return LayerPolicy(max(self.worst, loss), self.total + loss, self.full)

    def reading(self, layer: int) -> "LayerPolicy":
        """With one more full layer."""
        return LayerPolicy(self.worst, self.total, (*self.full, layer))


def policies(losses: Sequence[Sequence[float]], most_full: int) -> list[LayerPolicy]:
    """The policies that no other beats in full layers, worst and total loss at once.

    Args:
        losses: [layers][layers], at [i][j] with i < j what is lost if layer j reads layer i's list; inf: it
            cannot. The first layer is always full.
        most_full: full layers allowed.

    Returns:
        By number of full layers, then by worst loss; empty: so few cannot serve.
    """
    fronts = {(1, 0): [LayerPolicy(0.0, 0.0, (0,))]}
    for layer in range(1, len(losses)):
        grown: dict[tuple[int, int], list[LayerPolicy]] = defaultdict(list)
        for (count, source), front in fronts.items():
            loss = losses[source][layer]
            if math.isfinite(loss):
                grown[count, source] += [each.reusing(loss) for each in front]
            if count < most_full:
                grown[count + 1, layer] += [each.reading(layer) for each in front]
        fronts = {state: _unbeaten(found) for state, found in grown.items()}
    kept: list[LayerPolicy] = []
    for count in range(1, most_full + 1):
        same = _unbeaten(each for state, front in fronts.items() if state[0] == count for each in front)
        kept += [
            each
            for each in same
            if not any(few.worst <= each.worst and few.total <= each.total for few in kept)
        ]
    return kept


def _unbeaten(found: Iterable[LayerPolicy]) -> list[LayerPolicy]:
    """Those that no other beats in worst and total loss; one of equal ones."""
    front: list[LayerPolicy] = []
    for each in sorted(found):
        if not front or each.total < front[-1].total:
            front.append(each)
    return front
