"""Prefill methods through the whole engine, over tiny models."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from headway.engine.batch import Batch
from headway.engine.build import prefix_cache
from headway.engine.cache_layout import CacheLayout
from headway.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from headway.engine.core import Engine
from headway.engine.messages import PrefillUsage, Submit, Tokens
from headway.engine.methods.decode import AnyMethod as DecodeMethod
from headway.engine.methods.prefill import AnyMethod, streaming
from headway.engine.runner import ModelRunner
from headway.engine.sampler import Sampler
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.streaming_pages import StreamingPages
from headway.kernels.tile_attention import reference
from tests.engine.hash_runner import answers, finish, first_event, make_submit

from .driver import PAGE_SIZE, poisoned_cache, prompt, tiny_info
from .driver import make as make_decode
from .test_prefill_matrix import NAMES, made

CELL = 32
SMALL = {"dense_below": 16, "dense_tail": 8, "sink_size": 3, "window_size": 6, "tile": 16}
PROMPT = prompt(117)


class Probing(streaming.Method):
    """The keys that the chunk's last query likes best: every row depends on the end of its chunk."""

    row_local = False

    @property
    def granule(self) -> int:
        return CELL

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        keys = chunk.keys().repeat_interleave(query.shape[1] // chunk.spec.num_kv_heads, 1)
        scores = torch.einsum("hd,nhd->hn", query[-1], keys)
        best = scores.topk(min(12, len(keys))).indices
        return PrefillSelection(columns=best.unsqueeze(1).int())


def local(**wanted: int) -> AnyMethod:
    return streaming.Method(streaming.Settings(**SMALL | wanted))


def probing(**wanted: int) -> AnyMethod:
    return Probing(streaming.Settings(**SMALL | wanted))


KINDS = pytest.mark.parametrize("make", [local, probing])


@dataclass
class Served:
    """What an engine gave: its events, and the logits of each sampled token by request."""

    events: list[Tokens]
    logits: dict[str, list[Tensor]] = field(default_factory=dict)
    preemptions: int = 0

    @property
    def tokens(self) -> dict[str, list[int]]:
        return answers(self.events)

    def usage(self, request_id: str) -> PrefillUsage | None:
        return [event for event in self.events if event.request_id == request_id][-1].prefill


class Methods:
    """In the place of Recipes: what is served by what, by request."""

    def __init__(self, prefill: dict[str, AnyMethod], decode: dict[str, DecodeMethod]) -> None:
        self.prefill, self.decode = prefill, decode

    def methods(self, submit: Submit) -> tuple[DecodeMethod | None, AnyMethod | None]:
        return self.decode.get(submit.request_id), self.prefill.get(submit.request_id)


def engine_of(
    loaded, prefill: dict[str, AnyMethod], decode: dict[str, DecodeMethod] | None = None,
    num_pages: int = 96, max_step_tokens: int = 64, layout: CacheLayout | None = None,
    streaming: StreamingPages | None = None,
) -> Engine:  # fmt: skip
    """An engine in which each request has its own methods."""
    methods = Methods(prefill, decode or {})
    served = (*methods.prefill.values(), *methods.decode.values())
    sidecars = frozenset().union(*(method.sidecars() for method in served))
    layout = layout or CacheLayout(loaded.specs)
    streaming_cache = None
    if streaming is not None:
        streaming_cache = poisoned_cache(loaded, streaming.void + 1, (), CacheLayout(layout.streaming))
    return Engine(
        tiny_info(loaded, num_pages),
        SchedulerConfig(max_step_tokens=max_step_tokens, max_running=8),
        prefix_cache(loaded, num_pages, EngineConfig(cache=CacheConfig(page_size=PAGE_SIZE)), streaming),
        ModelRunner(
            loaded, poisoned_cache(loaded, num_pages, sidecars, layout), layout.orders, streaming_cache
        ),
        Sampler(loaded.vocab_size),
        methods,
    )


def serve(engine: Engine, prompts: dict[str, list[int]], max_tokens: int = 5, **sampling: int) -> Served:
    """Run requests side by side to their end."""
    logits: dict[str, list[Tensor]] = {}
    run = engine._runner.run

    def watched(batch: Batch) -> Tensor:
        rows = run(batch)
        offset = 0
        for chunk in batch.chunks:
            offset += chunk.prompt_logprob_rows + chunk.samples
            if chunk.samples:
                logits.setdefault(chunk.sequence.request_id, []).append(rows[offset - 1])
        return rows

    engine._runner.run = watched
    for request_id, tokens in prompts.items():
        engine.submit(make_submit(request_id, tokens, max_tokens, **sampling))
    events = finish(engine)
    engine._runner.run = run
    return Served(events, logits, engine.stats().preemptions_total)


def alone(loaded, method: AnyMethod | None, tokens: list[int] = PROMPT, **options: int) -> Served:
    """One request in an engine of its own."""
    engine = engine_of(loaded, {} if method is None else {"a": method}, **options)
    served = serve(engine, {"a": tokens})
    engine.close()
    return served


def assert_close(found: Served, expected: Served, request_id: str = "a", of: str = "a") -> None:
    torch.testing.assert_close(
        torch.stack(found.logits[request_id]), torch.stack(expected.logits[of]), atol=1e-4, rtol=1e-4
    )
    assert found.tokens[request_id] == expected.tokens[of]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("llama", id="grouped queries"),
        pytest.param("gemma2", id="sliding layer, soft cap"),
        pytest.param("gpt-oss", id="sliding layer, sink logits"),
        pytest.param("deepseek-v3", id="latent head"),
    ],
)
@KINDS
def test_with_room_for_everything_it_is_dense(make, family, load_family):
    loaded = load_family(family)
    served = alone(loaded, make(window_size=200, dense_below=0))
    assert_close(served, alone(loaded, None))
    assert served.usage("a") == PrefillUsage(method="streaming", tokens=117, density=1.0)


@KINDS
def test_leaving_keys_out_changes_the_answer(make, gqa):
    """Or else the tests below would prove nothing."""
    found, dense = alone(gqa, make()), alone(gqa, None)
    assert not torch.allclose(found.logits["a"][0], dense.logits["a"][0], atol=1e-2)


@KINDS
def test_a_prompt_below_the_gate_is_the_dense_path(make, gqa):
    served, dense = alone(gqa, make(dense_below=117)), alone(gqa, None)
    assert served.tokens == dense.tokens
    assert torch.equal(torch.stack(served.logits["a"]), torch.stack(dense.logits["a"]))
    assert served.usage("a") is None


@KINDS
def test_prompt_scores_are_those_of_the_whole_model(make, gqa):
    scores = []
    for prefill in ({}, {"a": make()}):
        engine = engine_of(gqa, prefill)
        scores.append(first_event(serve(engine, {"a": PROMPT}, prompt_logprobs=1).events, "a"))
        engine.close()
    assert scores[0].prompt_logprobs == scores[1].prompt_logprobs


@KINDS
def test_layers_that_stay_dense_read_everything(make, gqa):
    assert_close(alone(gqa, make(dense_layers=2)), alone(gqa, None))
    half = alone(gqa, make(dense_layers=1)).usage("a")
    assert half.tokens == 117
    assert 0 < half.density < 1


@KINDS
def test_its_density_is_what_the_reference_reads(make, gqa, monkeypatch):
    method, read, causal = make(), [], []
    attend = method.attend

    def watched(query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        for mask, kept in zip(masks(method, query, chunk), (read, causal), strict=True):
            kept.append(int(mask.sum()))
        return attend(query, chunk)

    monkeypatch.setattr(method, "attend", watched)
    usage = alone(gqa, method).usage("a")
    assert usage.method == "streaming"
    assert usage.density == pytest.approx(sum(read) / sum(causal), rel=1e-12)
    assert usage.density < 0.7


def masks(method: AnyMethod, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
    """bool [Hq, T, N]: what is read under the settings SMALL, and what could be."""
    selection, heads, tile = method.select(query, chunk), query.shape[1], SMALL["tile"]
    starts = torch.arange(chunk.start, chunk.end, tile)
    local = (starts - SMALL["window_size"]).clamp_min(0)
    dense = (starts < SMALL["dense_below"]) | (starts + tile > chunk.num_prompt - SMALL["dense_tail"])
    local = local.masked_fill(dense, 0).unsqueeze(0)
    read = reference.read_mask(
        chunk.plan, heads, tile, local, SMALL["sink_size"], selection.spans, selection.span, selection.columns
    )
    everything = reference.read_mask(chunk.plan, heads, tile, torch.zeros_like(local), 0, None, 1, None)
    return read, everything


@KINDS
def test_a_prefix_cache_hit_is_what_would_be_computed(make, gqa):
    longer = PROMPT + prompt(60, seed=9)
    cold = alone(gqa, make(), longer)
    engine = engine_of(gqa, dict.fromkeys("ab", make()))
    serve(engine, {"b": PROMPT})
    warm = serve(engine, {"a": longer})
    engine.close()
    assert first_event(warm.events, "a").cached_tokens == 96  # 117 less the tail of 8, in whole granules
    assert warm.usage("a").tokens == len(longer) - 96
    assert_close(warm, cold)


def test_recipes_share_nothing_with_each_other_or_with_dense_prompts(gqa):
    methods = {"a": local(), "b": local(window_size=7), "c": probing(), "d": local(dense_tail=9)}
    engine = engine_of(gqa, methods)
    for request_id in ("dense", *methods):
        served = serve(engine, {request_id: PROMPT})
        assert first_event(served.events, request_id).cached_tokens == 0
        assert_close(served, alone(gqa, methods.get(request_id)), request_id)
    engine.close()


@KINDS
def test_neither_the_tail_nor_the_answer_is_shared(make, gqa):
    """The next turn repeats prompt and answer; both were computed in another way than a prompt's middle."""
    method = make()
    engine = engine_of(gqa, dict.fromkeys("ab", method))
    first = serve(engine, {"b": PROMPT[:104]}, max_tokens=60)
    turn = PROMPT[:104] + first.tokens["b"] + prompt(9, seed=3)
    second = serve(engine, {"a": turn})
    engine.close()
    assert first_event(second.events, "a").cached_tokens == 96
    assert_close(second, alone(gqa, method, turn))


@KINDS
def test_preemption_changes_nothing(make, gqa):
    """Three prompts fit, but not with their answers."""
    prompts = {name: prompt(70 + 3 * seed, seed=seed) for seed, name in enumerate("abc")}
    found = []
    for num_pages in (64, 34):
        engine = engine_of(gqa, dict.fromkeys("abc", make()), num_pages=num_pages)
        found.append(serve(engine, prompts, max_tokens=30))
        engine.close()
    assert found[1].preemptions
    assert found[0].tokens == found[1].tokens


def test_mixed_with_others_each_is_as_if_alone(gqa):
    """Dense and sparse prompts, decodes that select and such that do not, in the same steps."""
    quest = make_decode("quest", gqa)
    methods = {"a": local(), "b": probing(), "c": local(tile=8, window_size=0)}
    prompts = {name: prompt(60 + 20 * seed, seed=seed) for seed, name in enumerate("abcdef")}
    decodes = dict.fromkeys("bde", quest)
    engine = engine_of(gqa, methods, decodes, max_step_tokens=96)
    mixed = serve(engine, prompts, max_tokens=8)
    engine.close()
    for name, tokens in prompts.items():
        prefill = {name: methods[name]} if name in methods else {}
        engine = engine_of(gqa, prefill, {name: decodes[name]} if name in decodes else {})
        assert_close(mixed, serve(engine, {name: tokens}, max_tokens=8), name, name)
        engine.close()


@KINDS
@pytest.mark.parametrize("name", ["snapkv"])
def test_a_decode_method_sees_the_queries_of_sparse_chunks(name, make, gqa):
    """With room for everything it sees the same as in a dense prompt."""
    observing = make_decode(name, gqa)
    seen: list[Tensor] = []
    observe = observing.observe

    def watched(query: Tensor, lse: Tensor, layer: LayerView) -> None:
        seen.extend((query.clone(), lse.clone()))
        observe(query, lse, layer)

    observing.observe = watched
    found = []
    for prefill in ({}, {"a": make(window_size=200, dense_below=0)}):
        seen.clear()
        engine = engine_of(gqa, prefill, {"a": observing}, max_step_tokens=200)
        served = serve(engine, {"a": prompt(CELL, seed=5) * 2})
        engine.close()
        found.append((served, [torch.cat(seen[place::4])[-observing.observes :] for place in range(4)]))
    (dense, expected), (sparse, rows) = found
    assert_close(sparse, dense)
    for one, other in zip(rows, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@KINDS
def test_a_step_that_fails_is_repeated_as_if_nothing_had_been(make, gqa):
    """It fails behind the layers; each of its two sequences then runs alone."""
    prompts = {"a": PROMPT, "b": prompt(90, seed=11)}
    found = []
    for failing in ((), (0, 1)):
        steps = iter(range(1000))
        engine = engine_of(gqa, dict.fromkeys("ab", make()), {"a": make_decode("snapkv", gqa)})

        def fail(_module, inputs, _output, failing=failing, steps=steps) -> None:
            if inputs[0].shape[1] == 64 and next(steps) in failing:
                raise ValueError("an injected fault")

        handle = gqa.model.model.norm.register_forward_hook(fail)
        found.append(serve(engine, prompts))
        handle.remove()
        engine.close()
        assert next(steps) > 0
    assert found[0].tokens == found[1].tokens
    for name in prompts:
        assert found[0].usage(name) == found[1].usage(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_served_and_its_cached_prefixes_are_what_it_computes(name, gqa):
    method = made(name, dense_below=16, dense_tail=8)
    method.check(gqa.specs, PAGE_SIZE)
    longer = PROMPT + prompt(50, seed=9)
    found = []
    for warm in (False, True):
        engine = engine_of(gqa, dict.fromkeys("abc", method), num_pages=128)
        if warm:
            serve(engine, {"b": PROMPT, "c": prompt(40, seed=2)})
        found.append(serve(engine, {"a": longer}))
        engine.close()
    cold, hit = found
    assert first_event(hit.events, "a").cached_tokens >= 96 - method.granule
    assert 0 < cold.usage("a").density <= 1
    assert_close(hit, cold)
