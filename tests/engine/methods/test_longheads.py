"""longheads: the chunk keys as a function of the page alone, and what they find."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.chunk_keys import chunk_keys
from headway.engine.methods.decode.longheads import Method, Settings

from .layers import DIM, GROUP, HEADS, KV_HEADS, PAGE_SIZE, Layers, always, best, randn, units

SINKS, WINDOW, BUDGET, LENGTH = 3, 10, 48, 117


def published(keys, scale: float):
    """Chunk keys [units, Hkv, D] in fp64, step by step: attend, average, attend with the average."""
    found = []
    for rows in keys.double().transpose(0, 1):
        outputs = (rows @ rows.T * scale).softmax(-1) @ rows
        mean = outputs.mean(0)
        found.append((rows @ mean * scale).softmax(0) @ rows)
    return torch.stack(found)


@settings(max_examples=30, deadline=None)
@given(
    unit=st.integers(1, 16),
    filled=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    scale=st.sampled_from([0.05, 0.25, 2.0]),
    seed=st.integers(0, 1000),
)
def test_a_chunk_key_is_what_its_keys_agree_on(unit, filled, scale, seed):
    filled = [min(one, unit) for one in filled]
    keys = randn(len(filled), unit, KV_HEADS, DIM, seed=seed)
    poisoned = keys.clone()
    for page, count in enumerate(filled):
        poisoned[page, count:] = torch.nan
    found = chunk_keys(poisoned, torch.tensor(filled), scale)
    expected = torch.stack([published(keys[page, :count], scale) for page, count in enumerate(filled)])
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("unit", [4, 64])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_units_with_the_best_chunk_keys_are_read_however_they_were_written(unit, chunk):
    method = Method(Settings(sink_size=SINKS, window_size=WINDOW, budget=BUDGET, unit=unit))
    keys, query = randn(1, LENGTH, KV_HEADS, DIM), randn(HEADS, DIM, seed=1)
    (selection,) = Layers(method, [keys], chunk=chunk).step(query[None, None])
    size = min(unit, PAGE_SIZE)
    summaries = torch.stack([published(part, 0.25) for part in keys[0].split(size)])
    scores = torch.einsum("uhd,hd->hu", summaries.repeat_interleave(GROUP, 1), query.double())
    scores = scores.view(KV_HEADS, GROUP, -1).amax(1)
    forced = always(LENGTH, SINKS, WINDOW, size)
    assert units(selection) == [best(each, BUDGET // size, forced) for each in scores]


def test_a_page_of_one_direction_is_found():
    keys, query = randn(1, LENGTH, KV_HEADS, DIM), randn(KV_HEADS, DIM, seed=1)
    keys[0, 56:64] = 0.5 * keys[0, 56:64] + query
    method = Method(Settings(sink_size=SINKS, window_size=WINDOW, budget=32))
    (selection,) = Layers(method, [keys]).step(query.repeat_interleave(GROUP, 0)[None, None])
    assert all(7 in chosen for chosen in units(selection))
