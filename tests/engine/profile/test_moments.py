"""moments: running sums against all keys at once, and keys against transformers' own cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from headway.engine.errors import ConfigError
from headway.engine.key_moments import KeyMoments
from headway.engine.profile import load as load_kind
from headway.engine.profile.haystacks import maker
from headway.engine.profile.moments import Settings, run
from headway.engine.profile.progress import Silent

from .readable import readable

CPU = torch.device("cpu")


def covariance(rows):
    return torch.stack([torch.cov(head.T, correction=0) for head in rows.double().unbind(1)])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(2, 6),
    st.integers(0, 2**32),
)
def test_parts_of_any_length_are_as_good_as_all_at_once(lengths, heads, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(dim, generator=generator) * 10
    rows = torch.randn(sum(lengths), heads, dim, generator=generator) * spread + 100
    moments = KeyMoments(heads, dim, CPU)
    for part in rows.split(lengths):
        moments.add(part)
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean, rows.double().mean(0))
    torch.testing.assert_close(moments.covariance, covariance(rows), atol=1e-9, rtol=1e-9)


def test_a_part_longer_than_what_is_widened_at_once():
    rows = torch.randn(5000, 1, 3, generator=torch.Generator().manual_seed(0))
    moments = KeyMoments(1, 3, CPU)
    moments.add(rows)
    assert moments.count == 5000
    torch.testing.assert_close(moments.covariance, covariance(rows))


def test_they_are_those_of_the_keys_that_transformers_caches(tmp_path):
    loaded = readable("llama", tmp_path)
    settings = Settings(length=1500, texts=2, seed=7)
    profile = run(loaded, settings, Silent())
    loaded.model.set_attn_implementation("sdpa")
    keys = [[], []]
    for index in range(2):
        cache = DynamicCache(config=loaded.model.config)
        with torch.inference_mode():
            loaded.model(
                torch.tensor([maker(loaded)(1500, index, 1, 7).ids]), past_key_values=cache, logits_to_keep=1
            )
        for found, layer in zip(keys, cache.layers, strict=True):
            found.append(layer.keys[0].transpose(0, 1))
    for layer, found in enumerate(keys):
        rows = torch.cat(found)
        assert profile.facts.findings["tokens"] == len(rows)
        torch.testing.assert_close(profile.tensors[f"mean.{layer}"], rows.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            profile.tensors[f"covariance.{layer}"], covariance(rows).float(), atol=1e-3, rtol=1e-3
        )


def test_layers_with_a_window_have_none(tmp_path):
    profile = run(readable("gemma3", tmp_path), Settings(length=300, texts=1), Silent())
    assert sorted(profile.tensors) == ["covariance.1", "mean.1"]


def test_equal_settings_give_equal_moments_and_another_seed_others(tmp_path):
    loaded = readable("llama", tmp_path)
    first, again, other = (
        run(loaded, Settings(length=300, texts=1, seed=seed), Silent()).tensors for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mean.0"], other["mean.0"])


def test_a_text_longer_than_the_context_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="length: must be at most the model's 2048, not 4096"):
        run(readable("llama", tmp_path), Settings(length=4096), Silent())


def test_it_is_a_kind_of_profile():
    assert load_kind("moments").run is run
