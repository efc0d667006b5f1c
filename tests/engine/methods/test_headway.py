"""headway: what its shortlist is made by, and that exact scores choose from it."""

import pytest
import torch

from headway.engine.methods.decode import base
from headway.engine.methods.decode.headway import Method, Settings
from headway.engine.selection import shortlist

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


def test_a_share_of_a_long_neighbour_lengthens_no_shortlist():
    """The shortlist holds at least the budget, which is each sequence's own."""
    keys = [randn(1, length, KV_HEADS, DIM, seed=length) for length in (101, 301)]
    query = randn(2, HEADS, DIM)
    method = Method(
        Settings(sink_size=SINKS, window_size=WINDOW, budget=BUDGET, unit=UNIT, fraction=0.4, shortlist=24)
    )
    (together,) = Layers(method, keys).step(query[None])
    for row, key in enumerate(keys):
        (alone,) = Layers(method, [key]).step(query[None, row : row + 1])
        assert units(together, row) == units(alone)


def watched(kernel, ranked):
    """The kernel, noting of which sequences it scores."""

    def run(*args, active=None, **wanted):
        ranked.append(None if active is None else active.tolist())
        return kernel(*args, active=active, **wanted)

    return run


@pytest.mark.parametrize("turned", [0, 1])
def test_only_a_sequence_whose_query_has_turned_is_ranked_again(turned, monkeypatch):
    ranked = []
    monkeypatch.setattr(base, "unit_scores", watched(base.unit_scores, ranked))
    monkeypatch.setattr(shortlist, "shortlist", watched(shortlist.shortlist, ranked))
    keys, query = [randn(1, LENGTH, KV_HEADS, DIM, seed=seed) for seed in (0, 1)], randn(1, 2, HEADS, DIM)
    settings = Settings(sink_size=SINKS, window_size=WINDOW, budget=BUDGET, unit=UNIT, similarity=0.9)
    layers = Layers(Method(settings), keys)
    (first,) = layers.step(query)
    query[:, turned] = randn(HEADS, DIM, seed=5)
    (second,) = layers.step(query)
    rows = [row == turned for row in range(2)]
    assert ranked == [[True, True]] * 2 + [rows] * 2
    assert [units(second, row) != units(first, row) for row in range(2)] == rows
    (alone,) = Layers(Method(settings), [keys[turned]]).step(query[:, turned : turned + 1])
    assert units(second, turned) == units(alone)
    ranked.clear()
    layers.step(query)
    assert not ranked
