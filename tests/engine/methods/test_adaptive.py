"""adaptive: the estimate, the decision that follows from it, what is then read, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headway.engine.build import build
from headway.engine.config import EngineConfig, ModelConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError, RequestError
from headway.engine.key_moments import KeyMoments
from headway.engine.loading import load
from headway.engine.methods.combination import why_no_routes
from headway.engine.methods.decode import streaming
from headway.engine.methods.decode.adaptive import Method, Settings, mean_log_mass
from headway.engine.offers import Offers
from headway.engine.profile import artefact
from headway.engine.profile.moments import Settings as MomentsSettings
from headway.engine.recipe import RecipeConfig
from headway.engine.selection import group
from tests.engine.hash_runner import answers, finish, make_submit
from tests.engine.models.families import save

from .driver import PAGE_SIZE, Job, assert_same, drive, lone_layer, make, prompt, settings_of, tokens_of
from .layers import DIM, GROUP, HEADS, KV_HEADS, Layers, randn, spec

SINKS, WINDOW, LENGTH = 3, 10, 100
NEEDLE = Path(__file__).parents[3] / "configs" / "profiles" / "needle"


def method(**wanted) -> Method:
    return Method(Settings(**{"dense_below": 0, "sink_size": SINKS, "window_size": WINDOW} | wanted))


def far(keys: Tensor) -> Tensor:
    """What of keys [tokens, …] lies between sinks and window."""
    return keys[SINKS : max(SINKS, len(keys) - WINDOW)]


# The estimate.


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 1.5))
def test_of_normal_keys_the_estimate_is_within_sampling_error(seed, spread):
    """The mean of n log-normal numbers of variance v in the exponent errs by √((eᵛ - 1) / n) of itself."""
    count, facts = 20_000, spec(num_heads=1, num_kv_heads=1)
    generator = torch.Generator().manual_seed(seed)
    root, query = torch.randn(2, DIM, DIM, generator=generator)
    query = query[:1] / (query[0] @ root.T).norm() * spread / facts.scale
    mean = torch.randn(DIM, generator=generator)
    keys = mean + torch.randn(count, DIM, generator=generator) @ root
    exact = torch.logsumexp(keys @ query[0] * facts.scale, 0) - math.log(count)
    told = mean_log_mass(query[None], (mean[None], (root.T @ root)[None]), facts)
    error = math.sqrt(math.expm1(spread**2) / count)
    assert abs(float(told - exact)) < 6 * error


def test_moments_of_all_sequences_hold_for_each():
    mean, root, query = randn(KV_HEADS, DIM), randn(KV_HEADS, DIM, DIM, seed=1), randn(3, HEADS, DIM, seed=2)
    shared = mean, root.mT @ root
    each = tuple(one.expand(3, *one.shape) for one in shared)
    torch.testing.assert_close(mean_log_mass(query, shared, spec()), mean_log_mass(query, each, spec()))


def test_a_softcap_bounds_the_estimate():
    moments = torch.full((KV_HEADS, DIM), 100.0), torch.zeros(KV_HEADS, DIM, DIM)
    query = torch.ones(1, HEADS, DIM)
    assert mean_log_mass(query, moments, spec()).max() > 50
    assert (mean_log_mass(query, moments, spec(softcap=5.0)) == 5).all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 30), st.integers(0, 2**32))
def test_moments_of_a_request_are_those_of_its_far_keys_after_every_step(lengths, steps, seed):
    """Also where sinks and window hold everything at first."""
    chosen = method()
    keys = [100 + randn(1, length + steps, KV_HEADS, DIM, seed=seed + i) for i, length in enumerate(lengths)]
    layers = Layers(chosen, [each[:, :length] for each, length in zip(keys, lengths, strict=True)])
    for step in range(steps):
        layers.step(randn(1, len(lengths), HEADS, DIM, seed=step))
        for row, each in enumerate(layers.keys):
            expected = KeyMoments(KV_HEADS, DIM, torch.device("cpu"))
            if len(far(each[0])):
                expected.add(far(each[0]))
                mean, covariance = (layers.stack.tensors[0, name][row] for name in ("mean", "covariance"))
                torch.testing.assert_close(mean, expected.mean.float(), atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(covariance, expected.covariance.float(), atol=1e-2, rtol=1e-3)
        layers.append([each[:, n + step : n + step + 1] for each, n in zip(keys, lengths, strict=True)])


# The decision.


def decided(chosen: Method, keys: Tensor, query: Tensor, **facts) -> list[bool]:
    """Which KV heads read everything, of one layer of keys [tokens, Hkv, D] and query [Hq, D]."""
    (selection,) = Layers(chosen, [keys[None]], **facts).step(query[None, None])
    return selection.dense[0].tolist()


@pytest.mark.parametrize(("threshold", "dense"), [(0.0, False), (1.01, True)])
def test_at_its_ends_the_threshold_decides_alone(threshold, dense):
    keys, query = 30 * randn(LENGTH, KV_HEADS, DIM), 30 * randn(HEADS, DIM, seed=1)
    assert decided(method(threshold=threshold), keys, query) == [dense] * KV_HEADS


def test_local_heads_read_what_streaming_reads():
    lengths = [100, 9, 14, 57]
    layer, query = lone_layer(lengths), torch.randn(4, 4, 8)
    plain = streaming.Method(streaming.Settings(sink_size=SINKS, window_size=WINDOW))
    ours, theirs = method(threshold=0).select(query, layer), plain.select(query, layer)
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(group.attend(query, layer, method(threshold=0)), group.attend(query, layer, plain))


def test_never_local_is_dense(gqa):
    trace, expected = (
        drive(gqa, [Job(prompt(117), each)], 9)[0] for each in (make("adaptive", gqa, threshold=1.5), None)
    )
    assert_same(trace, expected)


def shares(keys: Tensor, query: Tensor) -> Tensor:
    """A / (A + B) of each query head [Hq] in fp64, as the method's description has it."""
    found = []
    for head, vector in enumerate(query.double()):
        mine = keys[:, head // GROUP].double()
        scores, between = mine @ vector * 0.25, far(mine)
        spread = vector @ torch.cov(between.T, correction=0) @ vector * 0.25**2
        estimate = len(between) * torch.exp(vector @ between.mean(0) * 0.25 + spread / 2)
        near = scores.exp().sum() - far(scores).exp().sum()
        found.append(near / (near + estimate))
    return torch.stack(found)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_a_kv_head_is_local_if_all_its_query_heads_are(seed, threshold):
    keys, query = randn(LENGTH, KV_HEADS, DIM, seed=seed), 3 * randn(HEADS, DIM, seed=seed + 1)
    by_group = shares(keys, query).view(KV_HEADS, GROUP)
    if (by_group - threshold).abs().min() > 1e-4:
        expected = (by_group < threshold).any(1).tolist()
        assert decided(method(threshold=threshold), keys, query) == expected


def test_query_heads_that_disagree_keep_their_kv_head_long():
    """The first channel of a key says that it is near; one query head looks for the opposite."""
    keys = 0.1 * randn(LENGTH, KV_HEADS, DIM)
    keys[..., 0] = -10
    keys[-WINDOW:, :, 0] = 10
    query = torch.zeros(HEADS, DIM)
    query[:, 0] = 10
    assert decided(method(), keys, query) == [False, False]
    query[1, 0] = -10
    assert decided(method(), keys, query) == [True, False]


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_of_any_size_overflow_nothing(sign):
    keys = 1e4 * torch.ones(LENGTH, KV_HEADS, DIM)
    keys[-WINDOW:] *= -1
    query = sign * 1e4 * torch.ones(HEADS, DIM)
    assert decided(method(), keys, query) == [sign > 0] * KV_HEADS


def test_logits_without_a_value_are_near():
    keys, query = randn(LENGTH, KV_HEADS, DIM), randn(HEADS, DIM, seed=1)
    assert decided(method(), keys, query, sinks=torch.full((HEADS,), -50.0)) == [True] * KV_HEADS
    assert decided(method(), keys, query, sinks=torch.full((HEADS,), 50.0)) == [False] * KV_HEADS


def test_one_key_that_stands_out_is_invisible():
    """A needle has nearly all of the attention, and both heads are taken for local."""
    keys, query = 0.01 * randn(500, KV_HEADS, DIM), torch.zeros(HEADS, DIM)
    query[:, 0] = 16
    keys[-WINDOW:, :, 0] = 3
    keys[250, :, 0] = 6
    attention = (keys[:, 0] @ query[0] * 0.25).softmax(0)
    assert attention[250] > 0.99
    assert decided(method(), keys, query) == [False] * KV_HEADS


def test_it_counts_what_its_heads_read():
    layer, query = lone_layer([LENGTH]), torch.randn(1, 4, 8)
    chosen = method()
    selection = replace(chosen.select(query, layer), dense=torch.tensor([[True, False]]))
    chosen.select = lambda *_: selection
    group.attend(query, layer, chosen)
    assert layer.step.stack.attended.tolist() == [(LENGTH + SINKS + WINDOW) / 2]


# The profile.


@pytest.fixture(scope="module")
def needle():
    return load(ModelConfig(name="needle", threads=1))


def test_a_profile_gives_the_moments(needle):
    tensors = artefact.load(NEEDLE / "moments").tensors
    heads = needle.specs[0].num_heads
    layer = lone_layer([LENGTH] * 2, num_heads=heads, num_kv_heads=2, dim=32)
    query = randn(2, heads, 32)
    estimate = mean_log_mass(query, (tensors["mean.0"], tensors["covariance.0"]), layer.spec)
    found = []
    for row in range(2):
        keys = tokens_of(layer, row, layer.key_cache).repeat_interleave(heads // 2, 1)
        scores = torch.einsum("hd,nhd->hn", query[row], keys) * layer.spec.scale
        near = torch.cat((scores[:, :SINKS], scores[:, -WINDOW:]), 1).logsumexp(1)
        found.append(torch.sigmoid(near - estimate[row] - math.log(LENGTH - SINKS - WINDOW)))
    least = torch.stack(found).view(2, 2, -1).amin(2)
    chosen = method(profile=str(NEEDLE / "moments"), threshold=float(least.mean()))
    chosen.check(needle.specs, PAGE_SIZE)
    assert torch.equal(chosen.select(query, layer).dense, least < least.mean())
    assert not layer.step.stack.tensors


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (NEEDLE / "lowrank", "profile: .* is a profile of kind lowrank; it must be moments"),
        (NEEDLE / "nothing", "profile: cannot read the profile"),
        (NEEDLE / "moments", r"profile: mean.0 of .* must be \[2, 16\], not \[2, 32\]"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(profile, message, gqa):
    with pytest.raises(ConfigError, match=message):
        make("adaptive", gqa, profile=str(profile))


def test_layers_that_the_profile_lacks_are_named(needle, tmp_path):
    whole = artefact.load(NEEDLE / "moments")
    tensors = {name: tensor for name, tensor in whole.tensors.items() if name != "covariance.3"}
    artefact.save(tmp_path / "moments", replace(whole, tensors=tensors))
    with pytest.raises(ConfigError, match=r"covariance.3 of .* must be \[2, 32, 32\], not missing"):
        method(profile=str(tmp_path / "moments")).check(needle.specs, PAGE_SIZE)


@pytest.fixture
def served(tmp_path):
    """The configuration of a tiny model with a profile of its own."""
    model = {"name": str(save("llama", tmp_path)), "threads": 1}
    loaded = load(ModelConfig(**model))
    tensors = {}
    for each in loaded.specs:
        tensors[f"mean.{each.layer_idx}"] = torch.zeros(each.num_kv_heads, each.key_dim)
        tensors[f"covariance.{each.layer_idx}"] = torch.zeros(each.num_kv_heads, each.key_dim, each.key_dim)
    profile = artefact.made(loaded, "moments", tensors, settings=MomentsSettings(), seeds=[0], length=8)
    artefact.save(tmp_path / "moments", profile)
    return parse(
        EngineConfig,
        {
            "model": model,
            "cache": {"memory_gib": 0.01, "page_size": PAGE_SIZE},
            "scheduler": {"max_step_tokens": 64, "max_running": 8},
            "recipe": {"decode": settings_of("adaptive", profile=str(tmp_path / "moments"))},
        },
    )


def test_an_engine_serves_with_a_profile(served):
    engine = build(served)
    try:
        engine.submit(make_submit("asked", prompt(90), 5))
        (tokens,) = answers(finish(engine)).values()
        assert len(tokens) == 5
    finally:
        engine.close()


def test_a_profile_of_another_model_is_refused(served):
    path = Path(served.recipe.decode.profile)
    found = artefact.load(path)
    artefact.save(path, replace(found, facts=found.facts.model_copy(update={"fingerprint": "00"})))
    with pytest.raises(ConfigError, match=r"^recipe\.decode\.profile: .* other weights"):
        build(served)


def test_beside_routed_heads_it_is_refused():
    assert why_no_routes(method()).startswith("method: adaptive decides itself")


def test_a_request_chooses_the_threshold_and_no_file():
    offers = Offers(RecipeConfig(decode={"method": "adaptive"}))
    assert offers.settings({"threshold": 0.9}, None)[0].threshold == 0.9
    with pytest.raises(RequestError, match="threshold"):
        offers.settings({"threshold": 3.0}, None)
    with pytest.raises(RequestError, match="profile: only the server's configuration sets it"):
        offers.settings({"profile": "/etc/passwd"}, None)
