"""anchor: ranges that tile the causal area, and the margin to the anchor."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headway.engine.methods.prefill.anchor import Method, Settings

from .layers import DIM, HEADS, KV_HEADS, randn
from .prefill_layers import dense_rows, logits, prompt, read_counts

TILE, STEP = 8, 2
BLOCK = TILE * STEP
PLAIN = {"dense_below": 0, "dense_tail": 0, "sink_size": 3, "window_size": 5, "tile": TILE, "step": STEP}
LENGTHS = [1, TILE - 1, TILE, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]

forced = st.fixed_dictionaries(
    {
        "dense_below": st.sampled_from([0, 1, TILE, 20, BLOCK + TILE, 1000]),
        "dense_tail": st.sampled_from([0, 1, 9, BLOCK + 3, 1000]),
        "sink_size": st.sampled_from([0, 1, 7, BLOCK, 40, 1000]),
        "window_size": st.sampled_from([0, 1, 5, BLOCK + 3, 1000]),
    }
)


def method(**wanted) -> Method:
    return Method(Settings(**PLAIN | wanted))


def always(length: int, settings: Settings):
    """bool [N, N]: sinks, what begins a window before the row's super-block, and dense rows."""
    rows, places = torch.arange(length).unsqueeze(1), torch.arange(length)
    near = places >= rows // BLOCK * BLOCK - settings.window_size
    read = near | (places < settings.sink_size) | dense_rows(length, settings).unsqueeze(1)
    return read & (places <= rows)


def margins(query, key, settings: Settings, softcap=None, sinks=None):
    """float64 [Hq, N, N]: how far the best tile mean of each row's super-block lies above its limit."""
    heads, length = query.shape[1], len(query)
    found = torch.full((heads, length, length), -torch.inf, dtype=torch.float64)
    near = always(length, settings)
    scores = logits(query, key, softcap).masked_fill(~near, -torch.inf)
    anchors = scores.logsumexp(-1)
    if sinks is not None:
        anchors = torch.logaddexp(anchors, sinks.double().unsqueeze(1))
    dense = dense_rows(length, settings)
    for start in range(0, length, BLOCK):
        tiles = [at for at in range(start, min(start + BLOCK, length), TILE) if not dense[at]]
        if not tiles:
            continue
        pooled = torch.stack([query[at : at + TILE].double().mean(0) for at in tiles])
        scored = logits(pooled, key, softcap).transpose(0, 1)  # [tiles, Hq, N]
        limits = torch.stack([anchors[:, at : at + TILE].mean(1) for at in tiles]) - settings.theta
        best = (scored - limits.unsqueeze(-1)).amax(0)
        for at in tiles:
            found[:, at : at + TILE] = best.unsqueeze(1)
    return found.masked_fill(near, torch.inf).masked_fill(
        torch.ones(length, length).triu(1).bool(), -torch.inf
    )


def check(query, key, granules: int, softcap=None, sinks=None, **wanted) -> float:
    """The weights are what the margins say; returns the share of what is left to choose that is read."""
    chosen = method(**wanted)
    weights, pairs = read_counts(chosen, query, key, granules, softcap=softcap, sinks=sinks)
    margin = margins(query, key, chosen.settings, softcap, sinks)
    decided = margin.abs() > 1e-3
    torch.testing.assert_close(weights[decided], (margin > 0).double()[decided], atol=1e-3, rtol=0)
    assert pairs == weights.round().sum()
    open_pairs = margin.isfinite()
    return float(weights[open_pairs].mean()) if open_pairs.any() else 1.0


@hypothesis_settings(deadline=None, max_examples=40)
@given(length=st.sampled_from(LENGTHS), granules=st.integers(1, 3), forced=forced, seed=st.integers(0, 99))
def test_every_causal_pair_is_read_once_without_a_margin(length, granules, forced, seed):
    weights, pairs = read_counts(method(theta=1e6, **forced), *prompt(length, seed)[:2], granules)
    expected = torch.ones(length, length, dtype=torch.float64).tril().expand_as(weights)
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=0)
    assert pairs == expected.sum()


@hypothesis_settings(deadline=None, max_examples=40)
@given(length=st.sampled_from(LENGTHS), granules=st.integers(1, 3), forced=forced, seed=st.integers(0, 99))
def test_nothing_but_the_first_pass_is_read_below_every_score(length, granules, forced, seed):
    chosen = method(theta=-1e6, **forced)
    weights, pairs = read_counts(chosen, *prompt(length, seed)[:2], granules)
    expected = always(length, chosen.settings).double().expand_as(weights)
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=0)
    assert pairs == expected.sum()


@pytest.mark.parametrize("facts", [{}, {"softcap": 1.5}, {"sinks": torch.tensor([-1.0, 0.0, 2.0, 4.0])}])
@pytest.mark.parametrize("wanted", [{}, {"dense_below": 20, "dense_tail": 17}, {"sink_size": 0}])
def test_a_key_is_read_where_it_comes_near_the_anchor(facts, wanted):
    query, key, _ = prompt(3 * BLOCK + 7)
    shares = [check(query, key, 2, theta=theta, **wanted, **facts) for theta in (2.0, 3.0, 4.0)]
    assert shares == sorted(shares)
    assert 0 < shares[1] < 1


def test_a_needle_is_found_and_noise_is_left():
    query, key = 0.1 * randn(9 * BLOCK, HEADS, DIM), 0.1 * randn(9 * BLOCK, KV_HEADS, DIM, seed=1)
    key[10], query[-20] = 8.0, 8.0  # one row asks; the mean query of its tile still stands out
    weights, _ = read_counts(method(theta=1.0), query, key, 100)
    asking = weights[:, -20]
    torch.testing.assert_close(asking[:, 10], torch.ones(HEADS, dtype=torch.float64), atol=1e-3, rtol=0)
    assert asking[:, 20:100].sum() < 0.5
