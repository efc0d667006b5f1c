"""The dynamic programme against all policies there are."""

import math
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from headway.engine.profile.layer_policies import LayerPolicy, policies

CHOICES = [0.0, 1.0, 2.0, 3.0, 4.0, math.inf]
"""Few and whole: ties are common, and sums do not depend on their order."""


@st.composite
def cases(draw):
    layers = draw(st.integers(1, 7))
    row = st.lists(st.sampled_from(CHOICES), min_size=layers, max_size=layers)
    return draw(st.lists(row, min_size=layers, max_size=layers)), draw(st.integers(1, layers + 1))


def cost(losses, full):
    """(worst, total) of a policy."""
    paid = [
        losses[max(f for f in full if f < layer)][layer] for layer in range(len(losses)) if layer not in full
    ]
    return max(paid, default=0.0), sum(paid)


def everything(losses, most_full):
    """Every policy that can serve: (full layers, worst, total)."""
    others = range(1, len(losses))
    for count in range(min(most_full, len(losses))):
        for rest in combinations(others, count):
            worst, total = cost(losses, (0, *rest))
            if math.isfinite(total):
                yield count + 1, worst, total


@given(cases())
def test_it_finds_exactly_the_unbeaten_ones(case):
    losses, most_full = case
    found = policies(losses, most_full)
    for each in found:
        assert (each.worst, each.total) == cost(losses, each.full)
    possible = set(everything(losses, most_full))
    unbeaten = {
        one
        for one in possible
        if not any(all(a <= b for a, b in zip(two, one, strict=True)) for two in possible - {one})
    }
    assert {(len(each.full), each.worst, each.total) for each in found} == unbeaten
    assert len(found) == len(unbeaten)


def test_what_a_programme_that_keeps_one_path_a_state_would_miss():
    """At layer 4, (0, 1, 4) has the better worst loss and (0, 2, 4) the better sum; layer 6 then costs either
    as much, and the sum decides."""
    losses = [
        [0.0, 4.0, 4.0, 4.0, 2.0, 4.0, 3.0],
        [0.0, 0.0, 3.0, 3.0, 4.0, 3.0, 4.0],
        [0.0, 0.0, 0.0, 1.0, 4.0, 4.0, 4.0],
        [0.0, 0.0, 0.0, 0.0, 1.0, 4.0, 4.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 4.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0],
        [0.0] * 7,
    ]
    assert min(policies(losses, 3)) == LayerPolicy(4.0, 10.0, (0, 2, 4))


def test_layers_that_can_take_over_nothing_need_more_full_ones():
    losses = [[0.0, math.inf], [0.0, 0.0]]
    assert policies(losses, 1) == []
    (only,) = policies(losses, 2)
    assert only.full == (0, 1)
