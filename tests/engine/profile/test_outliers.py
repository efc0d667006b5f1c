"""outliers: channels that dwarf the others, on made-up numbers and in a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.profile.haystacks import maker
from headway.engine.profile.outliers import Settings, outlying, picture, run
from headway.engine.profile.pictures import png
from headway.engine.profile.progress import Silent
from headway.engine.profile.watched_run import WatchedRun

from .readable import readable


@given(st.lists(st.integers(1, 40), min_size=3, max_size=9), st.integers(1, 4), st.floats(1.5, 6))
def test_outliers_are_the_largest_from_the_ratio_on(sizes, most, ratio):
    median = sorted(sizes)[(len(sizes) - 1) // 2]
    large = sorted((channel for channel, size in enumerate(sizes) if size / median >= ratio),
                   key=lambda channel: -sizes[channel])[:most]  # fmt: skip
    found = outlying(torch.tensor([[sizes]], dtype=torch.float32), ratio, most)
    assert found.tolist() == [[large + [-1] * (most - len(large))]]


def test_channels_that_do_not_exist_are_no_outliers():
    rms = torch.tensor([[[1.0, 9.0, torch.nan, torch.nan], [torch.nan] * 4]])
    assert outlying(rms, 4.0, 2).tolist() == [[[1, -1], [-1, -1]]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A model one of whose key channels is large: KV head 1 of layer 0, in a pair that hardly turns."""
    made = readable("llama", tmp_path_factory.mktemp("outlier"))
    half = 8
    with torch.no_grad():
        weight = made.model.model.layers[0].self_attn.k_proj.weight
        weight[2 * half + half - 1] *= 50
    return made


def test_a_large_channel_is_found_where_it_is(loaded):
    profile = run(loaded, Settings(length=300, texts=2), Silent())
    channels = profile.tensors["channels"]
    assert channels.shape == (2, 2, 4)
    assert channels[0, 1, 0] == 7
    assert (channels[0, 0] == -1).all()
    assert (channels[1] == -1).all()
    assert profile.facts.findings["heads_with_outliers"] == 1
    assert profile.facts.findings["largest_ratio"] > 20
    assert png(picture(profile)).startswith(b"\x89PNG")


def test_root_mean_squares_are_those_of_the_cached_keys(loaded):
    profile = run(loaded, Settings(length=300, texts=2), Silent())
    keys = {0: [], 1: []}
    with WatchedRun(loaded, 300) as read:
        for index in range(2):
            ids = maker(loaded)(300, index, 1, 0).ids
            read.step(ids, 0, lambda spec, _, found: keys[spec.layer_idx].append(found.clone()), logits=1)
    own = torch.stack([torch.cat(keys[layer]).square().mean(0).sqrt() for layer in (0, 1)])
    torch.testing.assert_close(profile.tensors["key_rms"], own, atol=1e-4, rtol=1e-4)
