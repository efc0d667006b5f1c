"""recycled: when a layer takes a full step, what its lists hold, and its two limits."""

import pytest
import torch
from torch.nn.functional import max_pool1d

from headway.engine.selection import token_list

from .driver import Job, assert_same, drive, lone_layer, make, prompt, tokens_of, watch

PROMPT = prompt(117)
MAX_TOKENS = 16


def full_steps(loaded, job: Job, layer_idx: int = 1) -> list[int]:
    """The decode steps in which a layer read everything."""
    found: list[bool] = []

    def see(selection, layer, _query):
        if layer.spec.layer_idx == layer_idx:
            found.append(selection.dense is not None and bool(selection.dense[0]))

    watch(job.method, see)
    drive(loaded, [job], MAX_TOKENS)
    assert len(found) == MAX_TOKENS - 1
    return [step for step, full in enumerate(found) if full]


def test_always_refreshing_is_dense(gqa):
    (expected,) = drive(gqa, [Job(PROMPT)], MAX_TOKENS)
    method = make("recycled", gqa, stride=1, similarity=2)
    (trace,) = drive(gqa, [Job(PROMPT, method, expected.tokens)], MAX_TOKENS)
    assert_same(trace, expected)


def test_the_stride_counts_decode_steps(gqa):
    method = make("recycled", gqa, stride=6, similarity=2)
    assert full_steps(gqa, Job(PROMPT, method)) == [0, 6, 12]


def test_a_query_that_has_not_turned_keeps_the_list_until_the_window_has_passed(gqa):
    """The list is the prompt's; its window of 10 tokens is full after the tenth step."""
    method = make("recycled", gqa, stride=1, similarity=-1)
    assert full_steps(gqa, Job(PROMPT, method)) == [10]


def test_layers_decide_for_themselves_by_their_queries(gqa):
    """Oracle: the cosine of the mean queries, followed by hand."""
    method = make("recycled", gqa, stride=2, similarity=0.6, window_size=20)
    seen: dict[int, list[tuple[bool, torch.Tensor]]] = {0: [], 1: []}
    firsts: dict[int, torch.Tensor] = {}
    observe = method.observe

    def observing(query, lse, layer):
        firsts[layer.spec.layer_idx] = query[0].mean(0)
        observe(query, lse, layer)

    method.observe = observing
    watch(
        method,
        lambda selection, layer, query: seen[layer.spec.layer_idx].append(
            (bool(selection.dense[0]), query[0].mean(0))
        ),
    )
    drive(gqa, [Job(PROMPT, method)], MAX_TOKENS)
    decisions = {}
    for layer_idx, steps in seen.items():
        last = firsts[layer_idx]
        expected = []
        for step, (_, query) in enumerate(steps):
            full = step % 2 == 0 and float(torch.cosine_similarity(query, last, dim=0)) <= 0.6
            last = query if full else last
            expected.append(full)
        decisions[layer_idx] = [full for full, _ in steps]
        assert decisions[layer_idx] == expected
    assert decisions[0] != decisions[1]
    assert any(True in one and False in one[::2] for one in decisions.values())


@pytest.mark.parametrize("logits", [None, torch.tensor([3.0, -1.0, 2.0, 0.0])])
def test_lists_hold_what_the_query_looks_at(logits, gqa):
    """Oracle: probabilities, group maximum, pooling and the budget, one sequence at a time."""
    lengths = [100, 61]
    layer = lone_layer(lengths, sinks=logits)
    query = torch.randn(2, 4, 8) * 2
    method = make("recycled", gqa, similarity=2)
    selection = method.select(query, layer)
    assert selection.dense.tolist() == [True, True]
    for row, length in enumerate(lengths):
        keys = tokens_of(layer, row, layer.key_cache).repeat_interleave(2, 1)
        scores = torch.einsum("hd,nhd->hn", query[row], keys) * layer.spec.scale
        if logits is not None:
            scores = torch.cat((scores, logits.unsqueeze(1)), 1)
        chances = scores.softmax(-1)[:, :length].view(2, 2, length).amax(1)
        pooled = max_pool1d(chances, 7, stride=1, padding=3)
        pooled[:, :3] = pooled[:, -10:] = 2.0
        for head in range(2):
            # Pooling makes ties: compare what is chosen by its worth.
            chosen = selection.indices[row, head].long()
            assert len(chosen) == 48
            best = pooled[head].sort(descending=True).values[:48]
            torch.testing.assert_close(pooled[head][chosen].sort(descending=True).values, best)


def test_off_the_critical_path_nothing_is_dense_and_lists_come_a_step_later(gqa):
    layer = lone_layer([100])
    layer.step.fresh[:] = False
    method = make("recycled", gqa, similarity=2, stride=1, full_output=False)
    first, second, third = torch.randn(3, 1, 4, 8)
    selections = [method.select(query, layer) for query in (first, second, third)]
    assert all(selection.dense is None for selection in selections)
    made = []
    for query in (first, second):
        alone = lone_layer([100])
        made.append(make("recycled", gqa, similarity=2).select(query, alone).indices)
    # The first query has no list yet, and makes its own.
    assert torch.equal(selections[0].indices, made[0])
    assert torch.equal(selections[1].indices, made[0])
    assert torch.equal(selections[2].indices, made[1])
    assert not torch.equal(made[0], made[1])
    assert layer.step.stack.refreshes.tolist() == [3.0]


def test_it_is_outgrown_when_a_token_since_has_left_the_window(gqa):
    settings = make("recycled", gqa).settings
    layer = lone_layer([100, 100, 100])
    assert token_list.outgrown(layer, settings).tolist() == [True, True, True]
    layer.put("length", torch.tensor([100, 90, 89], dtype=torch.int32))
    assert token_list.outgrown(layer, settings).tolist() == [False, False, True]
