"""Remembered token lists: what joins them, and what gives way."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.methods.kind import DECODE
from headway.engine.selection import token_list

from .driver import lone_layer

SINKS, WINDOW = 3, 6


def at_length(length: int, made: dict[str, torch.Tensor]):
    """The layer again when its one sequence has grown, with what was remembered."""
    layer = lone_layer([length])
    layer.step.stack.tensors.update(made)
    return layer


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 80),
    budget=st.integers(SINKS + WINDOW, 40),
    newer=st.integers(0, WINDOW),
    seed=st.integers(0, 999),
    levels=st.integers(1, 20),
)
def test_the_weakest_give_way_to_the_window(length, budget, newer, seed, levels):
    told = {"method": "recycled", "sink_size": SINKS, "window_size": WINDOW, "budget": budget}
    wanted = DECODE.parse(told)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (1, 2, length), generator=generator).float()
    layer = lone_layer([length])
    width = layer.plan.block_table.shape[1] * layer.page_size
    behind = torch.full((1, 2, width - length), -torch.inf)
    token_list.remember(torch.cat((scores, behind), -1), layer, wanted, layer.step.fresh)
    later = at_length(length + newer, layer.step.stack.tensors)
    selection = token_list.within_budget(later, wanted)
    read = []
    for head in range(2):
        always = {t for t in range(length + newer) if t < SINKS or t >= length + newer - WINDOW}
        was_always = {t for t in range(length) if t < SINKS or t >= length - WINDOW}
        ranked = sorted(set(range(length)) - was_always, key=lambda t: (-scores[0, head, t], t))
        listed = was_always | set(ranked[: budget - len(was_always)])
        found = [t for t in selection.indices[0, head].tolist() if t >= 0]
        assert found == sorted(set(found))
        assert always <= set(found) <= always | listed
        assert len(found) == min(budget, len(always | listed))
        given_way = (listed - always) - set(found)
        worth = [float(scores[0, head, t]) for t in set(found) - always]
        assert all(float(scores[0, head, t]) <= min(worth, default=torch.inf) for t in given_way)
        read.append(len(found))
    assert selection.counts.tolist() == [sum(read) // 2]


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 60), newer=st.integers(0, 90), spare=st.integers(0, 5), seed=st.integers(0, 99))
def test_all_newer_tokens_join(length, newer, spare, seed):
    told = {"method": "snapkv", "sink_size": SINKS, "window_size": WINDOW, "budget": 20, "observation": 2}
    wanted = DECODE.parse(told)
    scores = torch.randn(1, 2, length, generator=torch.Generator().manual_seed(seed))
    layer = lone_layer([length])
    token_list.remember(scores, layer, wanted, layer.step.fresh)
    made = layer.step.stack.tensors[0, "numbers"][0] - 1
    later = at_length(length + newer, layer.step.stack.tensors)
    selection = token_list.with_all_newer(later, newer + spare)
    for head in range(2):
        expected = [t for t in made[head].tolist() if t >= 0] + list(range(length, length + newer))
        found = selection.indices[0, head].tolist()
        assert found == expected + [-1] * (len(found) - len(expected))
    assert selection.counts.tolist() == [min(20, length) + newer]
