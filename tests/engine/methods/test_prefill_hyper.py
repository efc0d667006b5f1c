"""hyper: an estimate whose expectation is exact, the same whenever it is asked."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headway.engine.methods.prefill.hyper import Method, Settings
from headway.engine.selection.hashed_attention import hashed_attention

from .layers import DIM, HEADS, randn, spec
from .prefill_layers import dense_rows, prefill, prompt, read_counts

TILE, CHUNK = 8, 24
PLAIN = {
    "dense_below": 0, "dense_tail": 0, "sink_size": 3, "window_size": 5, "tile": TILE, "chunk": CHUNK,
    "min_length": 0, "block": 8, "samples": 6, "projections": 4,
}  # fmt: skip
LENGTH, SCALE = 3 * CHUNK + 7, spec().scale


def method(**wanted) -> Method:
    return Method(Settings(**PLAIN | wanted))


def sums(query, key, value, directions, drawn, block, softcap=None):
    """Numerator [G, R, Dv] and denominator [G, R] of the estimate, float64; and the pairs it read."""
    found = hashed_attention(query, key, value, directions, torch.tensor(drawn), block, SCALE, softcap)
    weight = found.lse.double().exp()
    return (
        (found.out.double().nan_to_num() * weight.unsqueeze(-1)).sum(0),
        weight.sum(0),
        int(found.pairs),
    )


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 9),
    length=st.integers(1, 11),
    block=st.integers(1, 12),
    samples=st.integers(1, 2),
    projections=st.integers(1, 5),
    softcap=st.sampled_from([None, 0.7]),
    seed=st.integers(0, 999),
)
def test_over_all_draws_the_mean_is_exact(rows, length, block, samples, projections, softcap, seed):
    query, key = randn(3, rows, 4, seed=seed), randn(length, 4, seed=seed + 1)
    value, directions = randn(length, 2, seed=seed + 2), randn(4, projections, seed=seed + 3)
    draws = list(itertools.product(range(length), repeat=samples))
    found = [sums(query, key, value, directions, drawn, block, softcap) for drawn in draws]
    scores = query.double() @ key.double().T * SCALE
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    exact = scores.exp()
    mean = [torch.stack(each).mean(0) for each in list(zip(*found, strict=True))[:2]]
    torch.testing.assert_close(mean[0], exact @ value.double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean[1], exact.sum(-1), atol=1e-4, rtol=1e-4)


def test_one_block_is_exact_without_what_was_drawn():
    query, key, value = randn(2, 5, 4), randn(11, 4, seed=1), randn(11, 3, seed=2)
    numerator, denominator, pairs = sums(query, key, value, randn(4, 3), [0, 5, 5], 8)
    exact = (query.double() @ key.double().T * SCALE).exp()
    torch.testing.assert_close(numerator, exact @ value.double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(denominator, exact.sum(-1), atol=1e-5, rtol=1e-5)
    assert pairs == 2 * 5 * 11


def test_alike_queries_and_keys_meet_in_a_block():
    centres = randn(4, DIM, seed=3)
    key = centres.repeat_interleave(8, 0)[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    query = centres.repeat_interleave(2, 0).unsqueeze(0)
    found = hashed_attention(
        query, key, torch.zeros(32, 1), randn(DIM, 30, seed=4), torch.zeros(1, dtype=torch.int64), 8, SCALE,
        None,
    )  # fmt: skip
    own = (query[0] * query[0]).sum(-1) * SCALE + torch.log(torch.tensor(8.0))
    torch.testing.assert_close(found.lse[0, 0], own, atol=1e-4, rtol=1e-4)


def test_over_many_seeds_every_row_reads_as_much_as_there_is():
    """Seeds change the projections too. What one key weighs is settled by `test_over_all_draws...`."""
    query, key, _ = prompt(LENGTH)
    runs = torch.stack([read_counts(method(seed=seed), query, key)[0] for seed in range(60)])
    far = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for start in range(CHUNK, LENGTH, CHUNK):
        far[start : start + CHUNK, 3 : start - 5] = True
    far[dense_rows(LENGTH, method().settings)] = False
    near = torch.ones(LENGTH, LENGTH).tril().bool() & ~far
    exactly = near.double().expand_as(runs)
    torch.testing.assert_close(runs[..., ~far], exactly[..., ~far], atol=1e-3, rtol=0)
    reading = far.any(1)
    share = (runs * far).sum(-1).mean(0)[:, reading] / far.sum(1)[reading]
    # Of 6 samples about 5 stand outside the block, each for a sixth of the keys: 6 sigma of 60 means.
    assert (share - 1).abs().max() < 0.15
    assert (runs[..., far] > 0.5).any(0).all()
    assert runs[..., far].max() > 2


def test_a_drawn_key_of_the_block_counts_once():
    weights, _ = read_counts(method(samples=500), *prompt(LENGTH)[:2])
    start = 2 * CHUNK
    far = weights[:, start : start + CHUNK, 3 : start - 5]
    once = ((far - 1).abs() < 1e-3).sum(-1)
    assert (once >= 8).all()


def test_the_pairs_are_those_that_were_read():
    """A single sample stands nowhere twice."""
    weights, pairs = read_counts(method(samples=1), *prompt(LENGTH)[:2])
    assert pairs == (weights > 0.5).sum()


def test_the_same_seed_reads_the_same_and_another_one_does_not():
    query, key, value = prompt(LENGTH)
    first, again, other = (prefill(method(seed=seed), query, key, value).out for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("length", [1, TILE, CHUNK - 1, CHUNK, CHUNK + 1, LENGTH])
@pytest.mark.parametrize(
    "wanted",
    [{"min_length": LENGTH}, {"dense_below": 1000}, {"dense_tail": 1000}, {"sink_size": 1000}],
    ids=str,
)
def test_the_ways_to_read_everything(length, wanted):
    weights, pairs = read_counts(method(**wanted), *prompt(length)[:2])
    every = torch.ones(length, length, dtype=torch.float64).tril().expand_as(weights)
    torch.testing.assert_close(weights, every, atol=1e-3, rtol=0)
    assert pairs == every.sum()


def test_rows_of_the_beginning_and_the_tail_read_everything_and_no_others():
    chosen = method(dense_below=CHUNK + 1, dense_tail=12)
    weights, _ = read_counts(chosen, *prompt(LENGTH)[:2])
    dense = dense_rows(LENGTH, chosen.settings)
    every = torch.ones(LENGTH, LENGTH, dtype=torch.float64).tril().expand_as(weights)
    torch.testing.assert_close(weights[:, dense], every[:, dense], atol=1e-3, rtol=0)
    start = 2 * CHUNK
    sparse = weights[:, start : start + TILE]
    assert not sparse.allclose(every[:, start : start + TILE], atol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 1e4])
@pytest.mark.parametrize("facts", [{}, {"softcap": 2.0}, {"sinks": torch.zeros(HEADS)}], ids=str)
def test_hostile_scores_give_numbers(spread, facts):
    query, key, value = prompt(LENGTH)
    done = prefill(method(), spread * query, spread * key, value, **facts)
    assert done.out.isfinite().all()
    assert done.lse.isfinite().all()
