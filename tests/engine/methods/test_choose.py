"""Budget and cumulative mass: what is picked, against the rule in plain Python."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway.engine.methods import decode
from headway.engine.methods.kind import DECODE
from headway.engine.selection.choose import choose, limits_of

from .driver import lone_layer, settings_of
from .layers import GROUP, Layers, randn

RANKING = ("headway", "hylra", "longheads", "moba", "quest", "tokenselect")
"""Methods that rank from their first step on, with nothing but what the cache holds."""


def expected(scores: list[float], forced: set[int], budget: int, mass: float | None) -> list[int]:
    """Forced units, then the highest scores; of these, the highest that cover the mass of the whole row."""
    there = [unit for unit, score in enumerate(scores) if score > -math.inf]
    ranked = sorted(there, key=lambda unit: (unit not in forced, -scores[unit], unit))[:budget]
    if mass is None:
        return sorted(ranked)
    total = sum(math.exp(scores[unit]) for unit in there)
    kept, covered = set(ranked) & forced, 0.0
    for unit in sorted(ranked, key=lambda unit: -scores[unit]):
        if covered < mass * total:
            kept.add(unit)
        covered += math.exp(scores[unit])
    return sorted(kept)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    budget=st.integers(9, 40),
    fraction=st.sampled_from([None, 0.2, 0.9]),
    mass=st.sampled_from([None, 0.05, 0.6, 0.95]),
    spread=st.sampled_from([0.5, 3.0]),
    seed=st.integers(0, 999),
)
def test_picks_the_best_within_budget_and_mass(length, budget, fraction, mass, spread, seed):
    told = {"sink_size": 3, "window_size": 6, "budget": budget, "fraction": fraction, "mass": mass}
    wanted = DECODE.parse({"method": "loki", **told})
    lengths = [length, 33]
    layer = lone_layer(lengths)
    scores = randn(2, 2, layer.plan.max_pages * layer.page_size, seed=seed) * spread
    for row, count in enumerate(lengths):
        scores[row, :, count:] = -torch.inf
    always = [{unit for unit in range(count) if unit < 3 or unit >= count - 6} for count in lengths]
    found = choose(scores.clone(), layer, wanted, unit=1)
    for row, count in enumerate(lengths):
        most = max(budget, math.ceil(count * (fraction or 0)))
        lists = [expected(each, always[row], most, mass) for each in scores[row].tolist()]
        assert [[unit for unit in each if unit >= 0] for each in found.indices[row].tolist()] == lists
        if found.counts is not None:
            assert found.counts[row] == sum(map(len, lists)) // 2


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12_000), min_size=2, max_size=5),
    fraction=st.floats(0.001, 1, exclude_min=True) | st.sampled_from([0.1, 0.2, 0.3, 0.7, 1.0]),
    unit=st.sampled_from([1, 3, 8]),
)
@example(lengths=[5130, 9000], fraction=0.3, unit=1)
def test_a_share_of_the_context_is_the_same_alone_and_beside_others(lengths, fraction, unit):
    told = {"sink_size": 3, "window_size": 6, "budget": 9, "fraction": fraction}
    wanted = DECODE.parse({"method": "loki", **told})

    def limits(*rows: int) -> tuple[int, list[int]]:
        width, found = limits_of(lone_layer(rows, num_heads=1, num_kv_heads=1, dim=1), wanted, unit)
        return width, found.tolist()

    alone = [limits(length) for length in lengths]
    width, together = limits(*lengths)
    assert [[one] for one in together] == [one for _, one in alone]
    assert width == max(together) == max(one for one, _ in alone)


@pytest.mark.parametrize("name", RANKING)
def test_mass_ends_a_list_early(name):
    """All queries look for one key in the middle: little beside it is worth reading."""
    keys = randn(1, 200, 2, 16)
    query = (20 * keys[:, 100]).repeat_interleave(GROUP, 1).unsqueeze(1)
    method = decode.load(name)[1]
    read = []
    for mass in (None, 0.5):
        (found,) = Layers(method(DECODE.parse(settings_of(name, mass=mass))), [keys]).step(query)
        assert ((found.indices <= 100 // found.unit) & (found.indices >= 0)).any()
        read.append(int((found.indices >= 0).sum()) * found.unit)
        assert found.counts is None or found.counts[0] == read[-1] // found.indices.shape[1]
    assert read[1] < read[0]
