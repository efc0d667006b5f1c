"""Routing of layers by request: one decision for a request's whole life, whatever else is served."""

import logging

import pytest
import torch

from headway.engine.build import prefix_cache
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.core import Engine
from headway.engine.errors import ConfigError, EngineDead, QueueFull
from headway.engine.layer_router import LayerRouter
from headway.engine.layer_routing import LayerRouting
from headway.engine.loaded import LoadedModel
from headway.engine.loop import serve as serve_loop
from headway.engine.messages import Failed, Shutdown
from headway.engine.preview import Preview
from headway.engine.recipes import Recipes
from headway.engine.runner import ModelRunner
from headway.engine.sampler import Sampler
from headway.engine.selection.head_route import HeadRoutes
from tests.engine.hash_runner import first_event, make_submit

from .driver import PAGE_SIZE, poisoned_cache, prompt, tiny_info
from .test_prefill_serving import PROMPT, Served, assert_close, serve

SINKS, WINDOW, POOL = 3, 10, 6
DENSE = {
    "prefill": {"method": "dense", "dense_below": 16, "dense_tail": 8, "tile": 16},
    "decode": {"method": "dense", "dense_below": 0},
}
SELECTING = {
    "prefill": {"method": "streaming", "dense_below": 16, "dense_tail": 8, "tile": 16},
    "decode": {"method": "quest", "dense_below": 0, "budget": 48, "sink_size": 3, "window_size": 10},
}
RECIPES = pytest.mark.parametrize("recipe", [DENSE, SELECTING], ids=["dense", "selecting"])
PROMPTS = {name: prompt(90 + seed, seed=seed) for seed, name in enumerate("abcdefgh")}


def routing(loaded: LoadedModel, seed: int = 0, full: set[int] | None = None) -> LayerRouting:
    """Random networks, whose decisions differ from prompt to prompt; `full`: always these."""
    preview = Preview(loaded, POOL)
    torch.manual_seed(seed)
    router = LayerRouter({idx: spec.key_dim for idx, spec in preview.layers.items()})
    for layer, network in router.networks.items():
        for parameter in network.parameters():
            parameter.data.normal_(0.0, 0.5)
        if full is not None:
            network[-1].weight.data.zero_()
            network[-1].bias.data.copy_(torch.tensor([0.0, 1.0 if int(layer) in full else -1.0]))
    return LayerRouting(loaded.specs, preview, router, SINKS, WINDOW)


def engine_of(
    loaded: LoadedModel, routed: LayerRouting | HeadRoutes | None, *, num_pages: int = 160,
    prefix_cached: bool = True, recipe: dict = DENSE, **scheduler: int,
) -> Engine:  # fmt: skip
    """An engine that serves `recipe`, its layers or heads routed."""
    sections = {
        "cache": {"page_size": PAGE_SIZE, "prefix_cache": prefix_cached},
        "scheduler": {"max_step_tokens": 96, "max_running": 8} | scheduler,
        "recipe": recipe,
    }
    config = parse(EngineConfig, sections)
    by_layer = isinstance(routed, LayerRouting)
    routes = routed.undecided if by_layer else routed
    recipes = Recipes(config.recipe, loaded.specs, PAGE_SIZE, routes=routes)
    return Engine(
        tiny_info(loaded, num_pages),
        config.scheduler,
        prefix_cache(loaded, num_pages, config),
        ModelRunner(loaded, poisoned_cache(loaded, num_pages, recipes.sidecars)),
        Sampler(loaded.vocab_size),
        recipes,
        routed if by_layer else None,
    )


def served(
    loaded: LoadedModel, routed: LayerRouting | HeadRoutes | None, prompts: dict[str, list[int]],
    max_tokens: int = 8, **options: object,
) -> Served:  # fmt: skip
    engine = engine_of(loaded, routed, **options)
    found = serve(engine, prompts, max_tokens)
    engine.close()
    return found


def decisions(found: Served) -> dict[str, tuple[int, ...] | None]:
    return {event.request_id: event.full_layers for event in found.events if event.finish_reason}


def assert_equal(found: Served, expected: Served) -> None:
    assert found.logits.keys() == expected.logits.keys()
    for name, rows in expected.logits.items():
        assert torch.equal(torch.stack(found.logits[name]), torch.stack(rows))


@RECIPES
def test_full_in_every_layer_is_the_server_without_a_router(recipe, gqa):
    found = served(gqa, routing(gqa, full={0, 1}), PROMPTS, recipe=recipe)
    expected = served(gqa, None, PROMPTS, recipe=recipe)
    assert_equal(found, expected)
    assert set(decisions(found).values()) == {(0, 1)}
    assert set(decisions(expected).values()) == {None}
    assert found.usage("a") == expected.usage("a")


@RECIPES
@pytest.mark.parametrize("full", [set(), {1}])
def test_sparse_layers_are_layers_whose_heads_all_stream(full, recipe, gqa):
    found = served(gqa, routing(gqa, full=full), PROMPTS, recipe=recipe)
    streaming = {layer: (0, 1) for layer in (0, 1) if layer not in full}
    expected = served(gqa, HeadRoutes(gqa.specs, streaming, SINKS, WINDOW), PROMPTS, recipe=recipe)
    assert_equal(found, expected)
    assert set(decisions(found).values()) == {tuple(full)}
    dense = served(gqa, None, PROMPTS, recipe=recipe)
    assert not torch.allclose(found.logits["a"][1], dense.logits["a"][1], atol=1e-3)


def test_requests_of_different_decisions_share_batches_and_answer_as_alone(gqa):
    mixed = served(gqa, routing(gqa), PROMPTS)
    assert len(set(decisions(mixed).values())) >= 3
    for name, tokens in PROMPTS.items():
        alone = served(gqa, routing(gqa), {name: tokens})
        assert decisions(alone)[name] == decisions(mixed)[name]
        assert_close(mixed, alone, name, name)


@pytest.mark.parametrize("max_step_tokens", [88, 300])
def test_how_a_prompt_is_cut_changes_nothing(max_step_tokens, gqa):
    tokens = {"a": prompt(230, seed=4)}
    found = served(gqa, routing(gqa, seed=1), tokens, max_step_tokens=max_step_tokens)
    expected = served(gqa, routing(gqa, seed=1), tokens, max_step_tokens=120)
    assert decisions(found) == decisions(expected)
    assert_close(found, expected)


def test_a_prefix_cache_hit_is_what_would_be_computed(gqa):
    longer = [*PROMPT, *prompt(40, seed=9)]
    for full in (set(), {0}, {0, 1}):
        engine = engine_of(gqa, routing(gqa, full=full))
        serve(engine, {"b": PROMPT}, 8)
        warm = serve(engine, {"a": longer}, 8)
        engine.close()
        shared = 96 if full != {0, 1} else 112  # tiles, less the tail; pages where it is dense
        assert first_event(warm.events, "a").cached_tokens == shared
        assert_close(warm, served(gqa, routing(gqa, full=full), {"a": longer}))


def test_other_decisions_share_nothing(gqa):
    same = PROMPT[:POOL] + prompt(80, seed=5)
    tails = {name: same + prompt(20, seed=seed) for seed, name in enumerate("abcdefgh")}
    alone = decisions(served(gqa, routing(gqa), tails, prefix_cached=False))
    engine = engine_of(gqa, routing(gqa))
    known: set[tuple[int, ...]] = set()
    for name, tokens in tails.items():
        found = serve(engine, {name: tokens})
        assert decisions(found) == {name: alone[name]}
        assert (first_event(found.events, name).cached_tokens > 0) == (alone[name] in known)
        known.add(alone[name])
    engine.close()
    assert len(known) >= 2


def test_preemption_changes_nothing(gqa):
    """Three prompts fit, but not with their answers."""
    prompts = {name: PROMPTS[name][:80] for name in "abc"}
    roomy = served(gqa, routing(gqa), prompts, 30)
    narrow = served(gqa, routing(gqa), prompts, 30, num_pages=36)
    assert narrow.preemptions
    assert decisions(narrow) == decisions(roomy)
    assert (
        () in decisions(roomy).values()
        or (0,) in decisions(roomy).values()
        or (1,) in decisions(roomy).values()
    )
    assert narrow.tokens == roomy.tokens


class Looks:
    """Counts what a routing looks at; raises on prompts that end with `bad`."""

    def __init__(self, routed: LayerRouting, monkeypatch: pytest.MonkeyPatch, bad: int = -1) -> None:
        self.ends: list[tuple[int, ...]] = []
        queries = routed._preview.queries

        def look(ends):
            self.ends.append(ends)
            if ends[-1] == bad:
                raise IndexError("injected")
            return queries(ends)

        monkeypatch.setattr(routed._preview, "queries", look)


def test_short_and_scored_prompts_are_full_without_a_look(gqa, monkeypatch):
    routed = routing(gqa, full=set())
    looks = Looks(routed, monkeypatch)
    engine = engine_of(gqa, routed)
    short = {"gate": PROMPT[:16], "preview": PROMPT[: 2 * POOL]}
    found = serve(engine, short)
    scored = serve(engine, {"scored": PROMPT}, prompt_logprobs=0)
    assert decisions(found) | decisions(scored) == dict.fromkeys([*short, "scored"], (0, 1))
    assert not looks.ends
    assert decisions(serve(engine, {"long": PROMPT[:17]})) == {"long": ()}
    assert looks.ends == [tuple(PROMPT[:POOL] + PROMPT[17 - POOL : 17])]
    engine.close()


def test_answers_to_one_prompt_need_one_look(gqa, monkeypatch):
    routed = routing(gqa)
    looks = Looks(routed, monkeypatch)
    found = served(gqa, routed, {"a": PROMPT, "b": PROMPT, "c": PROMPT})
    assert len(set(decisions(found).values())) == len(looks.ends) == 1


def test_a_failing_preview_fails_its_request_only(gqa, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL, logger="headway.engine.isolation")
    routed = routing(gqa)
    Looks(routed, monkeypatch, bad=7)
    engine = engine_of(gqa, routed)
    good = make_submit("good", PROMPTS["b"], 4)
    sent = []

    inbox = [[good, make_submit("bad", [*PROMPT, 7], 4)], [Shutdown()]]

    class Link:
        def receive(self, _):
            return [] if engine.busy else inbox.pop(0)

        def send(self, messages):
            sent.extend(messages)

    serve_loop(engine, Link())
    engine.check()
    engine.close()
    failed = [event for event in sent if isinstance(event, Failed)]
    assert [(event.request_id, event.kind) for event in failed] == [("bad", "RequestFailed")]
    assert "injected" not in failed[0].message
    tokens = [t for event in sent if getattr(event, "token_ids", None) for t in event.token_ids]
    assert tokens == served(gqa, routing(gqa), {"good": PROMPTS["b"]}, 4).tokens["good"]


def test_an_accelerator_lost_in_a_preview_ends_the_engine(gqa, monkeypatch):
    routed = routing(gqa)

    def lost(_):
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(routed._preview, "queries", lost)
    engine = engine_of(gqa, routed)

    class Link:
        def receive(self, _):
            return [make_submit("any", PROMPT)]

    with pytest.raises(EngineDead, match="device-side assert"):
        serve_loop(engine, Link())
    engine.close()


def test_what_is_refused_is_not_looked_at(gqa, monkeypatch):
    routed = routing(gqa)
    looks = Looks(routed, monkeypatch)
    engine = engine_of(gqa, routed, max_queued_requests=1)
    engine.submit(make_submit("a", PROMPT))
    with pytest.raises(QueueFull):
        engine.submit(make_submit("b", PROMPTS["b"]))
    assert len(looks.ends) == 1
    engine.abort("a")
    engine.close()


def test_a_method_that_hands_lists_from_layer_to_layer_is_refused(gqa):
    with pytest.raises(ConfigError, match=r"^recipe\.decode\.method: hylra hands .* recipe\.layers"):
        engine_of(gqa, routing(gqa), recipe={"decode": {"method": "hylra"}})
