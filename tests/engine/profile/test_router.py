"""router: what is trained is what is served; the training, and layers routed by what it learnt."""

from pathlib import Path

import pytest
import torch

from headway.engine.build import build
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError
from headway.engine.patch import attached
from headway.engine.profile import artefact, duo, router, router_training
from headway.engine.profile.haystacks import maker
from headway.engine.profile.lessons import lesson_of
from headway.engine.profile.pictures import png
from headway.engine.profile.progress import Silent
from headway.engine.profile.routed_layers import layer_routing
from headway.engine.profile.two_streams import Streaming, two_streams
from headway.engine.recipe import LayersConfig
from headway.engine.selection.head_route import HeadRoutes
from tests.engine.hash_runner import answers, finish, make_submit
from tests.engine.methods.test_layer_routing import engine_of
from tests.engine.methods.test_prefill_serving import serve

from .readable import readable
from .test_duo import LENGTH, Stops, ids_of

NEEDLE = Path(__file__).parents[3] / "configs" / "profiles" / "needle" / "router"
SHAPE = Streaming(sink_size=3, window_size=10, tile=16)
SMALL = router.Settings(
    steps=4, shortest=160, longest=240, lengths=3, passkeys=2, sink_size=4, window_size=32, tile=16,
    pool_size=12, trials=3, learning_rate=0.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return readable("llama", tmp_path_factory.mktemp("readable"))


@pytest.mark.parametrize("on", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_switches_are_the_routes_that_are_served(on, load_family):
    loaded = load_family("llama")
    ids = ids_of(loaded)
    switches = {layer: torch.full((2,), value) for layer, value in enumerate(on)}
    with (
        two_streams(loaded, SHAPE, recompute=False) as streams,
        streams.log_probs(ids, switches, torch.tensor([LENGTH - 1])) as (full, switched),
    ):
        found = {1.0: full, 0.0: switched}
    routes = HeadRoutes(
        loaded.specs,
        {layer: (0, 1) for layer, value in enumerate(on) if not value},
        SHAPE.sink_size,
        SHAPE.window_size,
    )
    recipe = {"prefill": {"method": "dense", "dense_below": 0, "tile": SHAPE.tile}}
    for routed, log_probs in ((None, found[1.0]), (routes, found[0.0])):
        engine = engine_of(loaded, routed, recipe=recipe)
        logits = serve(engine, {"a": ids}, 1).logits["a"][0]
        engine.close()
        torch.testing.assert_close(log_probs[0], logits.log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert torch.allclose(full, switched, atol=1e-2) == (on == (1.0, 1.0))


def test_gradients_are_the_slopes_of_the_predictions(load_family):
    loaded = load_family("llama")
    ids, rows = ids_of(loaded), torch.arange(40, LENGTH)

    def loss(first, second):
        switches = {0: first.expand(2), 1: second.expand(2)}
        with streams.log_probs(ids, switches, rows) as (full, switched):
            value = (full.exp() * (full - switched)).sum(1).mean()
            if first.requires_grad:
                value.backward()
            return value.item()

    with two_streams(loaded, SHAPE, recompute=False) as streams:
        for at in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
            switches = [torch.tensor(value, requires_grad=True) for value in at]
            middle = loss(*switches)
            for place, switch in enumerate(switches):
                step = 0.01 if at[place] == 0.0 else -0.01
                once, twice = (loss(*moved(at, place, times * step)) for times in (1, 2))
                slope = (4 * once - twice - 3 * middle) / (2 * step)
                assert float(switch.grad) == pytest.approx(slope, rel=0.02, abs=1e-3)


def moved(at, place, step):
    return [torch.tensor(value + step * (index == place)) for index, value in enumerate(at)]


def test_what_was_broken_off_goes_on_as_if_it_had_not_been(model, tmp_path, monkeypatch):
    monkeypatch.setattr(router_training, "CHECKPOINT_STEPS", 2)
    whole = router.run(model, SMALL, Silent())
    path = tmp_path / "router.part"
    with pytest.raises(KeyboardInterrupt):
        router.run(model, SMALL, Stops(path, after=3))
    rest = Stops(path)
    resumed = router.run(model, SMALL, rest)
    assert rest.steps == SMALL.steps + SMALL.trials
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert resumed.facts == whole.facts
    other = router.run(model, SMALL.model_copy(update={"seed": 1}), Silent(path))
    assert not torch.equal(other.tensors["full_probability"], whole.tensors["full_probability"])
    assert whole.tensors["full_probability"].shape == (SMALL.trials, 2)
    assert png(router.picture(whole)).startswith(b"\x89PNG")


def test_where_nothing_is_lost_all_layers_become_sparse(model):
    """A window that holds everything: only the target is left."""
    settings = SMALL.model_copy(update={"steps": 30, "window_size": 256, "target": 1.0})
    found = router.run(model, settings, Silent()).facts.findings
    assert found["sparsity"] == 1.0
    assert found["divergence"] == pytest.approx(0.0, abs=1e-5)


def test_without_a_target_all_layers_stay_full(model):
    found = router.run(model, SMALL.model_copy(update={"target": 0.0}), Silent()).facts.findings
    assert found["full_share"] == {"0": 1.0, "1": 1.0}
    assert found["divergence"] == 0.0


def test_layers_with_a_window_are_not_decided_on(tmp_path):
    found = router.run(readable("gemma2", tmp_path), SMALL, Silent())
    assert found.tensors["full_probability"].isnan().all(0).tolist() == [True, False]
    assert list(found.facts.findings["full_share"]) == ["1"]


def test_ends_that_meet_are_refused():
    with pytest.raises(ValueError, match="pool_size must be at most a quarter of shortest = 1024, not 257"):
        router.Settings(pool_size=257)


def test_a_profile_decides_again_as_it_did_when_it_was_made(model, tmp_path):
    settings = SMALL.model_copy(update={"steps": 12, "target": 0.5, "trials": 6})
    found = router.run(model, settings, Silent())
    artefact.save(tmp_path / "router", found)
    routing = layer_routing(LayersConfig(router=str(tmp_path / "router")), model)
    make = maker(model)
    with attached(model.model), model.rope.attached():
        for number, chances in enumerate(found.tensors["full_probability"]):
            ids, rows = lesson_of(make, settings, "router", settings.steps + number)
            full = routing._look(routing._preview.ends(ids[: rows[0] + 1]))
            assert full == tuple((chances >= 0.5).nonzero().flatten().tolist())
    assert layer_routing(None, model) is None


def test_a_profile_that_does_not_fit_is_refused(model, load_family, tmp_path):
    found = router.run(model, SMALL, Silent())
    artefact.save(tmp_path / "router", found)
    cut = {name: tensor for name, tensor in found.tensors.items() if not name.startswith("networks.1.")}
    artefact.save(tmp_path / "cut", artefact.Artefact(found.facts, cut))
    gates = artefact.made(
        model, "duo", {"kv_heads": torch.rand(2, 2)}, settings=duo.Settings(), seeds=(0,), length=100
    )
    artefact.save(tmp_path / "duo", gates)
    cases = [
        (load_family("gpt-neox"), "router", "router profile of"),
        (model, "nothing", "cannot read the profile"),
        (model, "duo", "a duo profile routes no layers"),
        (model, "cut", "the profile is damaged"),
    ]
    for loaded, name, told in cases:
        with pytest.raises(ConfigError, match=rf"^recipe\.layers\.router: .*{told}"):
            layer_routing(LayersConfig(router=str(tmp_path / name)), loaded)


@pytest.mark.parametrize("narrower", [0, 1])
def test_a_window_narrower_than_in_training_is_warned_of(narrower, model, tmp_path, caplog):
    artefact.save(tmp_path / "router", router.run(model, SMALL, Silent()))
    config = LayersConfig(router=str(tmp_path / "router"), window_size=SMALL.window_size - narrower)
    layer_routing(config, model)
    told = f"recipe.layers.window_size is 31, but the router {config.router} was trained with 32"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * narrower
    assert all(told in record.getMessage() for record in caplog.records)


def test_needles_own_router_keeps_the_layer_that_retrieves_and_no_other():
    """Through the whole engine, from the configuration to the answers."""
    sections = {
        "model": {"name": "needle", "threads": 1, "max_context": 4096},
        "scheduler": {"max_step_tokens": 512, "max_running": 8},
        "recipe": {"layers": {"router": str(NEEDLE)}, "prefill": {"method": "dense", "dense_below": 512}},
    }
    engine = build(parse(EngineConfig, sections))
    make, asked = maker(engine._runner._loaded), {}
    for index in range(3):
        text = make(2000, index, 1, 77)
        asked[str(index)] = text.questions[0]
        engine.submit(
            make_submit(str(index), text.ids + text.questions[0].ask, len(text.questions[0].answer))
        )
    events = finish(engine)
    engine.close()
    assert answers(events) == {name: question.answer for name, question in asked.items()}
    assert [event.full_layers for event in events if event.finish_reason] == [(2,)] * 3
    assert all(event.prefill.density < 0.6 for event in events if event.finish_reason)
