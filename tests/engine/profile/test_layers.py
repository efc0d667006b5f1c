"""layers: what is measured, the policy it gives, and hylra that follows it."""

import math

import pytest
import torch

from headway.engine.build import build
from headway.engine.config import EngineConfig, ModelConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError
from headway.engine.loading import load
from headway.engine.methods.decode import hylra, streaming
from headway.engine.profile import artefact
from headway.engine.profile.haystacks import maker
from headway.engine.profile.layer_probes import Blinded, Overlaps
from headway.engine.profile.layers import Settings, picture, run, weighed_policies
from headway.engine.profile.pictures import png
from headway.engine.profile.progress import Silent
from headway.engine.profile.reader import reader
from headway.engine.profile.served import check_profiles
from headway.engine.recipe import RecipeConfig
from tests.engine.methods.layers import (
    DIM,
    GROUP,
    HEADS,
    KV_HEADS,
    PAGE_SIZE,
    Layers,
    always,
    best,
    randn,
    units,
)
from tests.engine.methods.layers import spec as layer_spec

from .readable import readable

SINKS, WINDOW, BUDGET, LENGTH = 3, 10, 30, 120
ALWAYS = {"dense_below": 0, "sink_size": SINKS, "window_size": WINDOW}
SMALL = Settings(length=400, haystacks=1, questions=1, sink_size=8, window_size=32, budget=64, full_share=0.5)


@pytest.fixture(scope="module")
def needle():
    return load(ModelConfig(name="needle", threads=1))


@pytest.fixture(scope="module")
def profile(needle):
    settings = Settings(length=1024, budget=192, sink_size=16, window_size=64, haystacks=2, questions=2)
    return run(needle, settings, Silent())


def overlaps(count: int, **facts) -> Overlaps:
    specs = [layer_spec(layer_idx, **facts) for layer_idx in range(count)]
    return Overlaps(hylra.Settings(**ALWAYS, budget=BUDGET), specs, PAGE_SIZE)


def attention(keys, query):
    """Of each KV head's query heads together, fp64 [Hkv, tokens]."""
    rows = keys.double().repeat_interleave(GROUP, 1)
    shares = torch.einsum("thd,hd->ht", rows, query.double() * 0.25).softmax(-1)
    return shares.view(KV_HEADS, GROUP, -1)


def test_overlap_is_the_caught_share_of_what_the_own_list_catches():
    """Two steps; layer 2's keys resemble those of layer 0."""
    keys = randn(3, LENGTH, KV_HEADS, DIM)
    keys[2] = keys[0] + 0.3 * randn(LENGTH, KV_HEADS, DIM, seed=9)
    queries = [randn(3, 1, HEADS, DIM, seed=seed) for seed in (1, 2)]
    for query in queries:
        query[2] = query[0]
    watching = overlaps(3)
    layers = Layers(watching, [keys])
    forced = always(LENGTH, SINKS, WINDOW)
    caught = torch.zeros(3, 3, dtype=torch.float64)
    for query in queries:
        selections = layers.step(query)
        assert all(each.dense.all() for each in selections)
        each_layer = [attention(keys[layer], query[layer, 0]) for layer in range(3)]
        lists = [[best(head.amax(0), BUDGET, forced) for head in shares] for shares in each_layer]
        assert [units(each) for each in selections] == lists
        for source in range(3):
            for layer in range(source, 3):
                for head, chosen in enumerate(lists[source]):
                    middle = sorted(set(chosen) - forced)
                    caught[source, layer] += each_layer[layer][head].sum(0)[middle].sum()
    expected = torch.where(torch.ones(3, 3).triu() > 0, caught / caught.diagonal(), math.nan)
    torch.testing.assert_close(watching.shares(), expected, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert expected[0, 2] > 2 * expected[1, 2]


def test_a_layer_of_other_heads_or_with_a_window_shares_nothing():
    specs = [layer_spec(0), layer_spec(1, num_kv_heads=1), layer_spec(2, window=8), layer_spec(3)]
    watching = Overlaps(hylra.Settings(**ALWAYS, budget=BUDGET), specs, PAGE_SIZE)
    assert watching.settings.full_layers == (0, 1, 3)
    assert watching.shares().isnan().all()


def test_one_layer_is_blind():
    keys, query = randn(3, LENGTH, KV_HEADS, DIM), randn(3, 1, HEADS, DIM, seed=1)
    selections = Layers(Blinded(streaming.Settings(**ALWAYS), 1), [keys]).step(query)
    assert [each.dense is None for each in selections] == [False, True, False]
    assert selections[0].dense.all()
    assert selections[2].dense.all()
    assert units(selections[1]) == [sorted(always(LENGTH, SINKS, WINDOW))]


def test_the_layer_of_needles_retrieval_heads_is_found(profile):
    sensitivity = profile.tensors["sensitivity"]
    assert sensitivity.argmax() == 2
    assert sensitivity[2] > 100 * sensitivity[[0, 1, 3, 4, 5]].max()
    assert profile.facts.findings["full_layers"] == [0, 2]
    overlap = profile.tensors["overlap"]
    assert torch.equal(overlap.isnan(), torch.ones(6, 6).tril(-1).bool())
    assert torch.equal(overlap.diagonal(), torch.ones(6))


def test_the_policies_get_better_with_more_full_layers(profile):
    found = profile.facts.findings["policies"]
    assert [len(each["full_layers"]) for each in found] == [1, 2]
    assert found[1]["worst"] < 0.01 * found[0]["worst"]
    assert profile.facts.findings["divergence"] < 0.1


def test_a_loss_is_what_the_overlap_lacks_of_the_sensitivity():
    """Layer 2 has a window; layer 3 needs most, but layer 1 has it."""
    sensitivity = torch.tensor([1.0, 2.0, math.nan, 8.0, 0.5])
    overlap = torch.full((5, 5), math.nan)
    overlap[0], overlap[1, 3], overlap[1, 4], overlap[3, 4] = 0.5, 0.75, 0.0, 1.5
    found = weighed_policies(sensitivity, overlap, [0, 1, 3, 4], 0.75)
    assert [(each.full, each.worst, each.total) for each in found] == [
        ((0,), 4.0, 1.0 + 4.0 + 0.25),
        ((0, 3), 1.0, 1.0),
        ((0, 1, 3), 0.0, 0.0),
    ]


def test_too_few_full_layers_for_a_change_of_heads_are_refused():
    overlap = torch.tensor([[1.0, math.nan], [math.nan, 1.0]])
    with pytest.raises(ConfigError, match=r"full_share: 0\.5 makes 1 of 2 layers full, too few"):
        weighed_policies(torch.ones(2), overlap, [0, 1], 0.5)


def test_hylra_keeps_needles_answers_with_the_policy_and_loses_them_with_its_own(needle, profile, tmp_path):
    artefact.save(tmp_path / "layers", profile)
    haystack = maker(needle)(1536, 1, 12, 6)
    policies = {"profile": str(tmp_path / "layers"), "own": None}
    ways = {
        name: hylra.Method(hylra.Settings(**ALWAYS, budget=128, policy=p)) for name, p in policies.items()
    }
    for method in ways.values():
        method.check(needle.specs, PAGE_SIZE)
    right = dict.fromkeys(("dense", *ways), 0)
    with reader(needle, 2048) as text:
        text.read(haystack.ids)
        for question in haystack.questions:
            prompt = haystack.ids + question.ask
            text.read(prompt, start=len(haystack.ids))
            for name in right:
                drawn = text.answer(prompt, question.answer, ways.get(name)).argmax(-1).tolist()
                right[name] += drawn[:-1] == question.answer[1:]
    assert right["profile"] == right["dense"] > 10
    assert right["own"] < 3


def test_equal_settings_give_equal_profiles(tmp_path):
    loaded = readable("llama", tmp_path)
    first, again = run(loaded, SMALL, Silent()), run(loaded, SMALL, Silent())
    assert first.facts == again.facts
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(tensor, again.tensors[name], rtol=0, atol=0, equal_nan=True)
    assert first.tensors["sensitivity"].min() > 0


def test_the_model_runs_as_before(tmp_path):
    loaded = readable("llama", tmp_path)
    before = loaded.model.config._attn_implementation
    run(loaded, SMALL, Silent())
    assert loaded.model.config._attn_implementation == before


def test_layers_with_a_window_take_no_part(tmp_path):
    loaded = readable(
        "gemma3", tmp_path, num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2
    )
    found = run(loaded, SMALL, Silent())
    assert found.tensors["sensitivity"].isnan().tolist() == [True, False, True, False]
    assert found.facts.findings["full_layers"] == [1]
    artefact.save(tmp_path / "layers", found)
    method = hylra.Method(hylra.Settings(policy=str(tmp_path / "layers.json")))
    method.check(loaded.specs, PAGE_SIZE)
    assert method.sources == {1: 1, 3: 1}


def test_latents_and_logits_without_values_can_be_measured(tmp_path):
    for family in ("deepseek-v3", "gpt-oss"):
        found = run(readable(family, tmp_path / family), SMALL, Silent())
        assert found.tensors["sensitivity"].nan_to_num().sum() > 0


def test_a_text_longer_than_the_context_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="length: must be at most the model's 2048, not 4096"):
        run(readable("llama", tmp_path), Settings(), Silent())


@pytest.mark.parametrize("wrong", [{"budget": 320}, {"length": 512}])
def test_a_budget_that_leaves_nothing_out_is_refused(wrong):
    with pytest.raises(ConfigError, match="sink_size \\+ window_size < budget < length"):
        parse(Settings, wrong)


def test_a_profile_of_another_kind_is_refused(tmp_path, needle):
    heads = artefact.made(needle, "retrieval", {}, settings=SMALL, seeds=[0], length=1)
    artefact.save(tmp_path / "heads", heads)
    with pytest.raises(ConfigError, match=r"policy: .* of kind retrieval; it must be layers"):
        hylra.Method(hylra.Settings(policy=str(tmp_path / "heads"))).check(needle.specs, PAGE_SIZE)


def test_a_profile_without_a_policy_is_refused(tmp_path, needle):
    artefact.save(
        tmp_path / "layers", artefact.made(needle, "layers", {}, settings=SMALL, seeds=[0], length=1)
    )
    with pytest.raises(ConfigError, match="policy: "):
        hylra.Method(hylra.Settings(policy=str(tmp_path / "layers"))).check(needle.specs, PAGE_SIZE)


def test_a_profile_of_another_model_is_refused(profile, tmp_path):
    artefact.save(tmp_path / "layers", profile)
    readable("llama", tmp_path / "other")
    config = {
        "model": {"name": str(tmp_path / "other"), "threads": 1},
        "cache": {"memory_gib": 0.01},
        "recipe": {"decode": {"method": "hylra", "policy": str(tmp_path / "layers")}},
    }
    with pytest.raises(ConfigError, match=r"recipe\.decode\.policy: the layers profile of needle"):
        build(parse(EngineConfig, config))


def test_a_profile_of_the_served_model_is_accepted(needle, profile, tmp_path):
    artefact.save(tmp_path / "layers", profile)
    decode = {"method": "hylra", "policy": str(tmp_path / "layers")}
    check_profiles(parse(RecipeConfig, {"decode": decode}), needle)


def test_its_picture_is_a_picture(profile):
    pytest.importorskip("matplotlib")
    assert png(picture(profile)).startswith(b"\x89PNG")
