"""tokenselect: the vote, its GQA mapping, and the Selection Cache."""

import pytest
import torch

from headway.engine.methods.decode.tokenselect import Method, Settings

from .driver import Job, assert_same, drive, make, prompt
from .layers import DIM, GROUP, HEADS, KV_HEADS, Layers, always, best, randn, units

SINKS, WINDOW, BUDGET = 3, 10, 40


def method(**wanted):
    base = {"dense_below": 0, "sink_size": SINKS, "window_size": WINDOW, "budget": BUDGET}
    return Method(Settings(**base | wanted))


def keys(length: int, seed: int = 0):
    return randn(1, length, KV_HEADS, DIM, seed=seed)


def queries(*seeds: int):
    return torch.stack([randn(HEADS, DIM, seed=seed) for seed in seeds]).unsqueeze(0)


def voted(key, query, *, scale: float = 1.0, kv_head=lambda head: head // GROUP) -> list[int]:
    """The published steps in fp64: for each head a softmax over what is not read anyway, then the sum."""
    length = len(key)
    forced = always(length, SINKS, WINDOW)
    votes = torch.zeros(length, dtype=torch.float64)
    for head in range(HEADS):
        scores = key[:, kv_head(head)].double() @ query[head].double() * scale
        scores[list(forced)] = -torch.inf
        votes += scores.softmax(0)
    return best(votes, BUDGET, forced)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_list_is_the_soft_vote_of_all_heads(scaled):
    lengths, query = (101, 64), queries(1, 2)
    layers = Layers(method(scaled=scaled), [keys(length, length) for length in lengths])
    (selection,) = layers.step(query)
    assert selection.indices.shape[:2] == (2, 1)
    for row, length in enumerate(lengths):
        scale = 0.25 if scaled else 1.0
        expected = voted(keys(length, length)[0], query[0, row], scale=scale)
        assert units(selection, row) == [expected]


def test_query_heads_vote_with_the_kv_head_of_their_group():
    (selection,) = Layers(method(), [keys(101)]).step(queries(1))
    wrong = voted(keys(101)[0], queries(1)[0, 0], kv_head=lambda head: head % KV_HEADS)
    assert units(selection) == [voted(keys(101)[0], queries(1)[0, 0])]
    assert units(selection) != [wrong]


def test_votes_that_underflow_still_choose():
    layers = Layers(method(budget=80), [100 * keys(80)])
    (selection,) = layers.step(queries(1))
    assert units(selection) == [list(range(80))]


def test_a_list_is_kept_while_the_query_stays_and_each_sequence_decides_alone():
    layers = Layers(method(), [keys(101, 1), keys(90, 2)])
    (first,) = layers.step(queries(1, 2))
    layers.append([keys(1, 3), keys(1, 4)])
    (second,) = layers.step(queries(1, 5))
    assert layers.stack.refreshes.tolist() == [1, 2]
    kept = set(units(first)[0])
    assert set(units(second)[0]) <= kept | {101}
    assert len(kept - set(units(second)[0])) == 1
    assert units(second, 1) == [voted(layers.keys[1][0], queries(5)[0, 0])]


def test_nearly_the_same_query_is_a_hit_and_a_turned_one_is_not():
    query, other = queries(1), queries(2)
    other -= (other * query).sum() / (query * query).sum() * query
    other *= query.norm() / other.norm()
    for angle, refreshes in ((0.40, 1), (0.50, 2)):  # cos 0.4 = 0.921, cos 0.5 = 0.878
        layers = Layers(method(), [keys(101)])
        layers.step(query)
        layers.append([keys(1, 3)])
        turned = torch.cos(torch.tensor(angle)) * query + torch.sin(torch.tensor(angle)) * other
        layers.step(turned)
        assert layers.stack.refreshes.tolist() == [refreshes]


def test_tokens_newer_than_the_list_are_read_within_the_budget():
    layers = Layers(method(), [keys(101)])
    layers.step(queries(1))
    expected = set(voted(keys(101)[0], queries(1)[0, 0]))
    for count in range(1, WINDOW + 1):
        layers.append([keys(1, 100 + count)])
        (selection,) = layers.step(queries(1))
        (chosen,) = units(selection)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == BUDGET
        assert set(range(101 - WINDOW, 101 + count)) | set(range(SINKS)) <= set(chosen)
        assert set(chosen) <= expected | set(range(101, 101 + count))
        assert layers.stack.refreshes.tolist() == [1]
    layers.append([keys(1, 200)])
    (selection,) = layers.step(queries(1))
    assert layers.stack.refreshes.tolist() == [2]
    assert units(selection) == [voted(layers.keys[0][0], queries(1)[0, 0])]


def test_what_gives_way_to_newer_tokens_has_the_fewest_votes():
    layers = Layers(method(), [keys(101)])
    layers.step(queries(1))
    layers.append([keys(2, 3)])
    (selection,) = layers.step(queries(1))
    candidates = keys(101)[0, SINKS:91].double()
    votes = torch.zeros(91, dtype=torch.float64)
    for head, query in enumerate(queries(1)[0, 0].double()):
        votes[SINKS:] += (candidates[:, head // GROUP] @ query).softmax(0)
    chosen = [one for one in units(selection)[0] if SINKS <= one < 91]
    before = [one for one in voted(keys(101)[0], queries(1)[0, 0]) if SINKS <= one < 91]
    assert chosen == sorted(sorted(before, key=lambda one: -votes[one])[:-2])


def test_a_budget_that_holds_only_sinks_and_window_keeps_the_newest():
    layers = Layers(method(budget=SINKS + WINDOW), [keys(101)])
    for length in (101, 102, 103):
        (selection,) = layers.step(queries(1))
        assert units(selection) == [sorted(always(length, SINKS, WINDOW))]
        layers.append([keys(1, length)])


def test_above_one_every_step_makes_a_new_list():
    layers = Layers(method(similarity=1.5), [keys(101)])
    for _ in range(3):
        layers.step(queries(1))
    assert layers.stack.refreshes.tolist() == [3]


def test_kept_lists_of_different_lengths_live_in_one_batch(gqa):
    """With a fraction, the width of a list depends on the longest neighbour; what it holds must not."""
    chosen = make("tokenselect", gqa, fraction=0.5, budget=24, similarity=-1.0)
    prompts = [prompt(117), prompt(61, seed=1), prompt(90, seed=2)]
    alone = [drive(gqa, [Job(one, chosen)], 16)[0] for one in prompts]
    mixed = drive(gqa, [Job(one, chosen) for one in prompts], 16, seed=3, largest_chunk=40)
    for trace, expected in zip(mixed, alone, strict=True):
        assert_same(trace, expected)


def test_a_mass_ends_the_list_once_the_votes_are_covered():
    (selection,) = Layers(method(mass=0.5), [keys(101)]).step(queries(1))
    forced = always(101, SINKS, WINDOW)
    votes = torch.zeros(101, dtype=torch.float64)
    for head, query in enumerate(queries(1)[0, 0].double()):
        scores = keys(101)[0, :, head // GROUP].double() @ query
        scores[list(forced)] = -torch.inf
        votes += scores.softmax(0) / HEADS
    strongest = votes.sort(descending=True)
    needed = int((strongest.values.cumsum(0) < 0.5).sum()) + 1
    assert 1 < needed < BUDGET - len(forced)
    assert units(selection) == [sorted([*forced, *strongest.indices[:needed].tolist()])]
    assert selection.counts.tolist() == [len(forced) + needed]
