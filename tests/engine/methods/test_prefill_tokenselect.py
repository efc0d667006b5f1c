"""tokenselect in prefill: the vote of a chunk, and what its rows read."""

import pytest
import torch

from headway.engine.methods.prefill.tokenselect import Method, Settings

from .layers import GROUP, HEADS, KV_HEADS, spec
from .prefill_layers import dense_rows, prefill, prompt, read_counts

TILE, CHUNK = 8, 24
PLAIN = {"dense_below": 0, "dense_tail": 0, "sink_size": 3, "window_size": 5, "tile": TILE, "chunk": CHUNK}
LENGTHS = [1, TILE, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]


def method(**wanted) -> Method:
    return Method(Settings(**PLAIN | wanted))


def expected(query, key, settings: Settings, kv_head=lambda head: head // GROUP, softcap=None):
    """bool [N, N]: the published vote in fp64, chunk by chunk, and what is always read."""
    length = len(query)
    read = torch.zeros(length, length, dtype=torch.bool)
    for start in range(0, length, CHUNK):
        rows = slice(start, start + CHUNK)
        near = max(0, start - settings.window_size)
        read[rows, near:] = True
        read[rows, : settings.sink_size] = True
        if near <= settings.sink_size:
            continue
        votes = torch.zeros(near - settings.sink_size, dtype=torch.float64)
        for head in range(HEADS):
            voter = query[rows, head].double().mean(0) * (spec().scale if settings.scaled else 1.0)
            scores = key[settings.sink_size : near, kv_head(head)].double() @ voter
            if softcap is not None and settings.scaled:
                scores = softcap * (scores / softcap).tanh()
            votes += scores.softmax(0)
        chosen = votes.argsort(descending=True)[: settings.budget] + settings.sink_size
        read[rows, chosen] = True
    read[dense_rows(length, settings)] = True
    return read.tril()


def check(query, key, wanted_reads, chosen: Method, **facts) -> None:
    weights, pairs = read_counts(chosen, query, key, **facts)
    wanted_weights = wanted_reads.double().expand_as(weights)
    torch.testing.assert_close(weights, wanted_weights, atol=1e-3, rtol=0)
    assert pairs == wanted_weights.sum()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "wanted",
    [{}, {"scaled": True}, {"sink_size": 0, "window_size": 0}, {"window_size": 40}, {"sink_size": 60}],
    ids=str,
)
def test_the_list_is_the_soft_vote_of_all_heads(length, wanted):
    query, key, _ = prompt(length)
    chosen = method(budget=9, **wanted)
    check(query, key, expected(query, key, chosen.settings), chosen)


def test_dense_beginning_and_tail():
    query, key, _ = prompt(3 * CHUNK + 7)
    chosen = method(budget=9, dense_below=CHUNK + 1, dense_tail=12)
    check(query, key, expected(query, key, chosen.settings), chosen)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_softcap_is_voted_with_only_if_the_vote_is_the_layers(scaled):
    query, key, _ = prompt(3 * CHUNK)
    chosen = method(budget=9, scaled=scaled)
    check(query, key, expected(query, key, chosen.settings, softcap=0.7), chosen, softcap=0.7)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_budget_beyond_the_prompt_reads_everything(length):
    query, key, _ = prompt(length)
    check(query, key, torch.ones(length, length).tril().bool(), method(budget=length))


def test_query_heads_vote_with_the_kv_head_of_their_group():
    query, key, _ = prompt(3 * CHUNK)
    chosen = method(budget=9)
    right = expected(query, key, chosen.settings)
    assert not right.equal(expected(query, key, chosen.settings, kv_head=lambda head: head % KV_HEADS))
    check(query, key, right, chosen)


@pytest.mark.parametrize("spread", [0.0, 1e4])
def test_hostile_scores_give_numbers_and_full_budgets(spread):
    query, key, value = prompt(2 * CHUNK)
    done = prefill(method(budget=9), spread * query, spread * key, value)
    assert done.out.isfinite().all()
    assert done.lse.isfinite().all()
    assert done.pairs == HEADS * (CHUNK * (CHUNK + 1) + CHUNK * (3 + 5 + 9))
