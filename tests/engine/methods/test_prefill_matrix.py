"""What every prefill method owes, whatever it selects: found by the registry, over layers made by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headway.engine.methods import prefill as registry
from headway.engine.methods.prefill import AnyMethod

from .layers import GROUP
from .prefill_layers import dense, prefill, prompt, read_counts

TILE = 16
NAMES = [name for name in registry.names() if name != "dense"]
SMALL: dict[str, Any] = {"dense_below": 0, "dense_tail": 0, "sink_size": 3, "window_size": 5, "tile": TILE}
OWN_SMALL: dict[str, dict[str, Any]] = {
    "anchor": {"step": 2, "theta": 2.0},
    "dhsa": {"budget": 24, "unit": 4, "chunks": 2},
    "flexprefill": {"chunk": 2 * TILE, "gamma": 0.5, "min_budget": 8},
    "headway": {"budget": 16, "block": 4},
    "hyper": {"chunk": 2 * TILE, "min_length": 8, "block": 8, "samples": 8},
    "moba": {"block": 8, "top_k": 3},
    "tokenselect": {"chunk": 2 * TILE, "budget": 16},
    "vertical_slash": {"chunk": 2 * TILE, "columns": 8, "slashes": 20},
    "xattention": {"stride": 4, "mass": 0.5},
}
"""Settings under which a prompt of a hundred tokens is long."""
ROOM: dict[str, dict[str, Any]] = {
    "anchor": {"theta": 1e6},
    "dhsa": {"budget": 1000},
    "flexprefill": {"gamma": 1.01, "tau": 0.0, "max_budget": 1000},
    "headway": {"budget": 1000},
    "hyper": {"min_length": 1000},
    "moba": {"top_k": 1000},
    "streaming": {"window_size": 1000},
    "tokenselect": {"budget": 1000},
    "vertical_slash": {"columns": 1000, "slashes": 1000},
    "xattention": {"mass": 1.01},
}
"""Settings under which a method leaves nothing out."""
SAMPLING = {"hyper"}
"""Methods in which a drawn key stands for others."""
SELECTING = [name for name in NAMES if name not in SAMPLING]
ROW_LOCAL = [name for name in NAMES if registry.load(name)[1].row_local]
LENGTHS = [1, TILE - 1, TILE, TILE + 1, 3 * TILE + 7]
LONG = 6 * TILE + 7


def made(name: str, **wanted: Any) -> AnyMethod:
    schema, kind = registry.load(name)
    return kind(schema.model_validate({"method": name} | SMALL | OWN_SMALL.get(name, {}) | wanted))


def most_granules(name: str) -> int:
    return 100 if name in ROW_LOCAL else 1


@pytest.mark.parametrize("length", [*LENGTHS, LONG])
@pytest.mark.parametrize("name", NAMES)
def test_with_room_for_everything_it_is_dense(name, length):
    query, key, value = prompt(length, seed=length)
    out, lse = dense(query, key, value)
    for granules in {1, most_granules(name)}:
        done = prefill(made(name, **ROOM[name]), query, key, value, granules)
        torch.testing.assert_close(done.out, out, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(done.lse, lse, atol=1e-5, rtol=1e-5)


forced = st.fixed_dictionaries(
    {
        "dense_below": st.sampled_from([0, 1, TILE, 40]),
        "dense_tail": st.sampled_from([0, 1, TILE + 3]),
        "sink_size": st.sampled_from([0, 1, 7, 40]),
        "window_size": st.sampled_from([0, 1, 5, TILE + 3]),
    }
)


@pytest.mark.parametrize("name", SELECTING)
@hypothesis_settings(deadline=None, max_examples=12)
@given(length=st.sampled_from([*LENGTHS, LONG]), wanted=forced, seed=st.integers(0, 999), many=st.booleans())
def test_no_pair_is_read_twice_and_what_is_always_read_is_read(name, length, wanted, seed, many):
    query, key, _ = prompt(length, seed)
    counts, pairs = read_counts(made(name, **wanted), query, key, most_granules(name) if many else 1)
    read = counts.round()
    torch.testing.assert_close(counts, read, atol=1e-2, rtol=0)
    assert read.max() == 1
    assert pairs == read.sum()
    rows, places = torch.arange(length).unsqueeze(1), torch.arange(length)
    starts = rows // TILE * TILE
    always = places >= starts - wanted["window_size"]
    always |= places < wanted["sink_size"]
    always |= (starts < wanted["dense_below"]) | (rows >= length - wanted["dense_tail"])
    assert read[:, always & (places <= rows)].all()
    assert not read[:, places > rows].any()


@pytest.mark.parametrize("name", SELECTING)
def test_something_is_left_out(name):
    """Else the other tests would say nothing."""
    query, key, _ = prompt(LONG)
    _, pairs = read_counts(made(name), query, key)
    assert pairs < query.shape[1] * LONG * (LONG + 1) // 2


@pytest.mark.parametrize("name", ROW_LOCAL)
def test_a_later_token_changes_no_earlier_row(name):
    method = made(name)
    before = 3 * method.granule
    query, key, value = prompt(before + 2 * method.granule + 7)
    first = prefill(method, query, key, value, granules=100)
    for each in (query, key, value):
        each[before:] += 5.0
    second = prefill(method, query, key, value, granules=100)
    assert second.out[:before].equal(first.out[:before])
    assert second.lse[:before].equal(first.lse[:before])
    assert not second.out[before:].equal(first.out[before:])


@pytest.mark.parametrize("name", ROW_LOCAL)
def test_however_loud_later_tokens_are_no_earlier_row_hears_them(name):
    method = made(name)
    before = 3 * method.granule
    query, key, value = prompt(before + 2 * method.granule)
    query = query.abs()
    first = prefill(method, query, key, value, granules=100)
    key[before:] *= 1e4
    second = prefill(method, query, key, value, granules=100)
    assert second.out[:before].equal(first.out[:before])


@pytest.mark.parametrize("name", ROW_LOCAL)
def test_chunks_of_any_number_of_granules_give_the_same(name):
    method = made(name, dense_below=20, dense_tail=9)
    query, key, value = prompt(6 * method.granule + 3)
    whole = prefill(method, query, key, value, granules=100)
    for granules in (1, 2, 5):
        done = prefill(method, query, key, value, granules)
        torch.testing.assert_close(done.out, whole.out, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(done.lse, whole.lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SELECTING)
def test_grouped_queries_equal_repeated_keys(name):
    query, key, value = prompt(LONG)
    grouped = prefill(made(name), query, key, value)
    repeated = prefill(made(name), query, *(each.repeat_interleave(GROUP, 1) for each in (key, value)))
    torch.testing.assert_close(grouped.out, repeated.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grouped.lse, repeated.lse, atol=1e-5, rtol=1e-5)


HOSTILE = {
    "zeros": lambda rows: rows * 0,
    "constant": lambda rows: torch.ones_like(rows),
    "large": lambda rows: rows * 1e4,
    "large and negative": lambda rows: -rows.abs() * 1e4,
    "one large key": lambda rows: torch.where(torch.arange(len(rows)).view(-1, 1, 1) == 9, 1e4, rows),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_scores_give_numbers(name, kind):
    query, key, value = prompt(LONG)
    done = prefill(made(name), HOSTILE[kind](query).abs(), HOSTILE[kind](key), value)
    assert done.out.isfinite().all()
    assert done.lse.isfinite().all()
    assert done.out.abs().max() <= value.abs().max() + 1e-3 or name in SAMPLING
