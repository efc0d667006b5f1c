"""sinks: the rules on made-up numbers, and a model that has a sink."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.profile import sinks
from headway.engine.profile.haystacks import maker
from headway.engine.profile.pictures import png
from headway.engine.profile.progress import Silent
from headway.engine.profile.sinks import Settings, picture, resemblance, run, secondary, sink_size

from .readable import readable

RULES = Settings(norm=5.0, cosine=0.9, least=0.1, most=0.65)


def test_likeness_counts_only_where_the_first_token_stands_out():
    norms = torch.tensor([[3.0, 1, 2, 3, 9], [20.0, 1, 4, 4, 9], [20.0, 1, 4, 4, 9]])
    cosines = torch.tensor([[1.0, 0.99, 0, 0, 0], [1.0, 0.99, 0.1, 0, 0], [1.0, 0.8, 0.2, 0, -0.95]])
    ratio, like = resemblance(norms, cosines, RULES)
    torch.testing.assert_close(ratio, torch.tensor([1.5, 5.0, 5.0]))
    # Places count from the second token on.
    assert like.nonzero().tolist() == [[1, 0], [2, 3]]


@given(st.integers(2, 60), st.data())
def test_a_secondary_sink_lasts_for_some_of_the_layers(layers, data):
    lasting = data.draw(st.lists(st.integers(0, layers), min_size=1, max_size=6))
    like = torch.zeros(layers, len(lasting), dtype=torch.bool)
    for token, count in enumerate(lasting):
        like[:count, token] = True
    expected = [place for place, count in enumerate(lasting, 1) if 0.1 * layers < count <= 0.65 * layers]
    assert secondary(like, RULES, layers) == expected


def test_the_sinks_to_keep_reach_to_the_last_one():
    mass = torch.zeros(2, 3, 8)
    assert sink_size(mass, 0.1) == 0
    mass[0, 1, 0], mass[1, 2, 3] = 0.5, 0.11
    mass[1, 0, 6] = torch.nan
    assert sink_size(mass, 0.1) == 4
    assert sink_size(mass, 0.2) == 1


@pytest.fixture(scope="module")
def sunk(tmp_path_factory):
    """A model to which the token that opens every text is far larger than the others."""
    loaded = readable("llama", tmp_path_factory.mktemp("sunk"), num_hidden_layers=4)
    first = maker(loaded)(300, 0, 1, 0).ids[0]
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[first] *= 100
    return loaded


def test_a_first_token_that_stands_out_is_seen(sunk):
    profile = run(sunk, Settings(length=300, texts=2), Silent())
    assert profile.facts.findings["standing_out_layers"] == [0, 1, 2]
    assert profile.tensors["first_norm"].shape == profile.tensors["like_first"].shape == (3,)
    assert profile.tensors["initial_mass"].shape == (4, 4, 16)
    assert png(picture(profile)).startswith(b"\x89PNG")


@pytest.mark.parametrize("chunk", [64, 1024])
def test_attention_and_norms_of_the_first_tokens_are_the_models_own(sunk, chunk, monkeypatch):
    monkeypatch.setattr(sinks, "CHUNK", chunk)
    profile = run(sunk, Settings(length=300, texts=1), Silent())
    ids = maker(sunk)(300, 0, 1, 0).ids
    sunk.model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = sunk.model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    own = torch.stack([layer[0, :, -64:, :16].mean(1) for layer in expected.attentions])
    norms = torch.cat(expected.hidden_states[1:-1]).norm(dim=-1)
    ratio = norms[:, 0] / norms[:, 1:].median(1).values
    torch.testing.assert_close(profile.tensors["first_norm"], ratio, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(profile.tensors["initial_mass"], own, atol=1e-3, rtol=1e-2)
