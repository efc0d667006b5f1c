"""flexprefill reaches its share of the attention and trusts mean vectors only where they are right."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headway.engine.methods.prefill import load
from headway.engine.methods.prefill.flexprefill import block_means, divergence
from headway.engine.selection.slashes import covering

from .layers import HEADS, KV_HEADS, randn
from .prefill_layers import prompt, read_counts

TILE, CHUNK = 16, 32
SMALL = {"dense_below": 0, "dense_tail": 0, "sink_size": 2, "window_size": 6, "tile": TILE, "chunk": CHUNK}


def made(**wanted):
    schema, method = load("flexprefill")
    return method(schema(**SMALL | {"probe": 8, "min_budget": 0} | wanted))


def true_mass(query, key):
    """float64 [Hq, N, N]"""
    every = key.double().repeat_interleave(HEADS // KV_HEADS, 1)
    scores = torch.einsum("thd,nhd->htn", query.double(), every) * 0.25
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


@hypothesis_settings(deadline=None, max_examples=10)
@given(
    gamma=st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    probe=st.sampled_from([1, 8, 20]),
    length=st.sampled_from([64, 103, 160]),
    sharpness=st.sampled_from([0.1, 1.0, 6.0]),
    seed=st.integers(0, 999),
)
def test_the_probes_rows_read_their_share(gamma, probe, length, sharpness, seed):
    query, key, _ = prompt(length, seed)
    query = query * sharpness
    counts, _ = read_counts(made(gamma=gamma, tau=0.0, probe=probe), query, key)
    read = (true_mass(query, key) * counts.round()).sum(-1)  # [Hq, N]
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        rows = read[:, max(start, end - probe) : end]
        assert (rows.mean(1) >= gamma - 1e-5).all()


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    share=st.sampled_from([0.0, 0.4, 0.9, 1.01]),
    least=st.integers(0, 6),
    most=st.integers(1, 50),
    length=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_no_fewer_units_would_do(share, least, most, length, seed):
    mass = randn(2, length, seed=seed).exp()
    useful = randn(length, seed=seed + 1) > -0.5
    found = covering(mass, useful, torch.full((2, 1), share), least, most)
    for row, taken in zip(mass, found, strict=True):
        chosen = {one for one in taken.tolist() if one >= 0}
        order = [at for at in row.argsort(descending=True, stable=True).tolist() if useful[at]]
        assert chosen == set(order[: len(chosen)])
        assert min(least, most, len(order)) <= len(chosen) <= most
        held = [row[~useful].sum() + row[order[:count]].sum() for count in range(len(order) + 1)]
        enough = [count for count, sum_ in enumerate(held) if sum_ >= share * row.sum() - 1e-5]
        wanted = min(most, max(min(least, len(order)), enough[0] if enough else len(order)))
        exact = [count for count, sum_ in enumerate(held) if sum_ >= share * row.sum() + 1e-5]
        assert wanted <= len(chosen) <= max(wanted, min(most, exact[0] if exact else len(order)))


def test_where_blocks_are_of_equal_keys_their_means_are_trusted():
    """All keys of a block are one vector: the prediction is exact, and whole blocks are read, no columns."""
    query = randn(1, 1, 16).expand(160, HEADS, -1) * 2
    key = randn(10, KV_HEADS, 16, seed=1).repeat_interleave(TILE, 0)
    counts, _ = read_counts(made(gamma=0.8), query, key)
    trusting = counts.round()
    mass = true_mass(query, key)
    assert ((mass * trusting).sum(-1)[:, -CHUNK:].mean(1) >= 0.8 - 0.1).all()
    for start in range(CHUNK, 160, TILE):
        earlier = trusting[:, start, 16 : (start - 6) // TILE * TILE].unflatten(-1, (-1, TILE))
        assert (earlier == earlier[..., :1]).all()
    assert trusting.sum() < trusting.numel() / 2


def test_a_key_hidden_by_its_block_is_found():
    """Its block's mean says nothing of it: the head is not trusted, and reads the key's column."""
    query, key, _ = prompt(160)
    query = query * 0.01 + 1
    key = key * 0.1
    key[37], key[38] = 12.0, -12.0
    counts, _ = read_counts(made(gamma=0.9), query, key)
    assert counts[:, 64:, 37].round().eq(1).all()


def test_budgets_bound_what_a_head_takes():
    query, key, _ = prompt(160)
    _, none = read_counts(made(gamma=1e-6, tau=0.0), query, key)
    _, least = read_counts(made(gamma=1e-6, tau=0.0, min_budget=24), query, key)
    _, most = read_counts(made(gamma=1.01, tau=0.0, max_budget=24), query, key)
    _, every = read_counts(made(gamma=1.01, tau=0.0), query, key)
    assert none < least == most < every == HEADS * 160 * 161 // 2


def test_divergence():
    one, other = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert divergence(one, one).item() == 0
    assert divergence(one, other).item() == pytest.approx(math.log(2))
    third = torch.tensor([[0.25, 0.25, 0.5]])
    expected = 0.5 * (2 * 0.5 * math.log(0.5 / 0.375)) + 0.5 * (
        2 * 0.25 * math.log(0.25 / 0.375) + 0.5 * math.log(0.5 / 0.25)
    )
    assert divergence(one, third).item() == pytest.approx(expected)
    assert divergence(third, one).item() == pytest.approx(expected)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 24])
def test_means_of_blocks(length):
    keys = randn(length, 2, 4)
    means = block_means(keys, 8)
    expected = torch.stack([keys[start : start + 8].mean(0) for start in range(0, length, 8)])
    torch.testing.assert_close(means, expected)


def test_budgets_must_be_in_order():
    with pytest.raises(ValidationError, match="max_budget must be at least min_budget = 64, not 32"):
        made(min_budget=64, max_budget=32)
