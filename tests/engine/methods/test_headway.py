"""headway: what its shortlist is made by, and that exact scores choose from it."""

import pytest
import torch

from headway.engine.methods.decode.headway import Method, Settings

from .layers import DIM, GROUP, HEADS, KV_HEADS, Layers, always, best, randn, units

SINKS, WINDOW, BUDGET, LENGTH, UNIT = 3, 10, 24, 301, 4


def selected(query, keys, **settings):
    method = Method(Settings(sink_size=SINKS, window_size=WINDOW, budget=BUDGET, unit=UNIT, **settings))
    (selection,) = Layers(method, [keys]).step(query[None, None])
    return selection


@pytest.mark.parametrize("probe", ["mean", "each"])
def test_a_shortlist_of_everything_gives_the_exact_best(probe):
    keys, query = randn(1, LENGTH, KV_HEADS, DIM), randn(HEADS, DIM, seed=1)
    selection = selected(query, keys, probe=probe, shortlist=LENGTH + UNIT)
    scores = torch.einsum("nhd,hd->hn", keys[0].repeat_interleave(GROUP, 1), query)
    forced = always(LENGTH, SINKS, WINDOW, 1)
    assert units(selection) == [
        best(each, BUDGET, forced) for each in scores.view(KV_HEADS, GROUP, -1).amax(1)
    ]


def test_heads_that_ask_alike_are_served_alike_by_their_mean():
    keys, query = randn(1, LENGTH, KV_HEADS, DIM), randn(KV_HEADS, DIM, seed=1)
    alike = query.repeat_interleave(GROUP, 0)
    found = [units(selected(alike, keys, probe=probe, shortlist=60)) for probe in ("mean", "each")]
    assert found[0] == found[1]


def test_what_one_head_alone_asks_for_needs_bounds_of_its_own():
    """Two opposite queries have no mean, and its bounds nothing to say."""
    keys, query = 0.1 * randn(1, LENGTH, KV_HEADS, DIM), randn(KV_HEADS, DIM, seed=1)
    keys[0, 150] = 5 * query
    opposite = torch.stack((query, -query), 1).flatten(0, 1)
    shortlist = UNIT * (BUDGET // UNIT)
    by_each = units(selected(opposite, keys, probe="each", shortlist=shortlist))
    by_mean = units(selected(opposite, keys, probe="mean", shortlist=shortlist))
    assert all(150 in chosen for chosen in by_each)
    assert all(150 not in chosen for chosen in by_mean)
