"""Where heads lie in the cache, and which of their KV is kept: neither changes what is read."""

from typing import Any

import pytest
import torch

from headway.engine.cache_layout import cache_layout
from headway.engine.core import Engine
from headway.engine.errors import ConfigError, RequestError
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SamplingParams, Submit
from headway.engine.methods.decode import AnyMethod as DecodeMethod
from headway.engine.methods.decode import dense as decode_dense
from headway.engine.methods.prefill import AnyMethod as PrefillMethod
from headway.engine.methods.prefill import dense as prefill_dense
from headway.engine.methods.routed import RoutedDecode, RoutedPrefill
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.streaming_pages import StreamingPages
from tests.engine.hash_runner import first_event

from .driver import PAGE_SIZE, prompt
from .driver import make as make_decode
from .test_prefill_matrix import OWN_SMALL
from .test_prefill_matrix import SMALL as SMALL_PREFILL
from .test_prefill_matrix import made as make_prefill
from .test_prefill_serving import PROMPT, assert_close, engine_of, serve

SINKS, WINDOW, STEP = 3, 10, 64
SMALL = {"dense_below": 16, "dense_tail": 8, "tile": 16}
STREAMING = {"one of each": {0: (1,), 1: (0,)}, "a layer": {0: (0, 1)}, "most": {0: (0, 1), 1: (0,)}}
DROPPED = 60
"""Pages of heads that stream."""


def engine(
    loaded: LoadedModel, streaming: dict[int, tuple[int, ...]], names: str = "a", *,
    memory: str = "drop", prefill: PrefillMethod | None = None, decode: DecodeMethod | None = None,
    window: int = WINDOW, dropped: int = DROPPED, **options: Any,
) -> Engine:  # fmt: skip
    """Requests of these names, routed alike; `memory`: drop, keep, or "as it was", in the model's order."""
    prefill = prefill or prefill_dense.Method(prefill_dense.Settings(**SMALL))
    decode = decode or decode_dense.Method(decode_dense.Settings(dense_below=0))
    routes = HeadRoutes(loaded.specs, streaming, SINKS, window)
    layout = cache_layout(
        None if memory == "as it was" else routes, loaded.specs, loaded.device, memory == "drop"
    )
    pages = StreamingPages(dropped, PAGE_SIZE, routes, STEP) if memory == "drop" else None
    moved = routes.moved_last(layout.sorted)
    return engine_of(
        loaded,
        dict.fromkeys(names, RoutedPrefill(prefill, moved)),
        dict.fromkeys(names, RoutedDecode(decode, moved)),
        max_step_tokens=STEP,
        layout=layout,
        streaming=pages,
        **options,
    )


def alone(*args: Any, tokens: list[int] = PROMPT, **wanted: Any) -> Any:
    made = engine(*args, **wanted)
    served = serve(made, {"a": tokens}, max_tokens=20)
    made.close()
    return served


@pytest.mark.parametrize("streaming", STREAMING.values(), ids=STREAMING)
@pytest.mark.parametrize(
    ("prefill", "decode"),
    [("dense", "dense"), ("xattention", "quest"), ("flexprefill", "recycled"), ("anchor", "loki")],
)
def test_order_and_memory_change_nothing(prefill, decode, streaming, gqa):
    methods = {
        "prefill": make_prefill(prefill, **SMALL_PREFILL | OWN_SMALL.get(prefill, {}) | SMALL),
        "decode": None if decode == "dense" else make_decode(decode, gqa),
    }
    served = {
        memory: alone(gqa, streaming, memory=memory, **methods) for memory in ("as it was", "keep", "drop")
    }
    assert_close(served["keep"], served["as it was"])
    assert_close(served["drop"], served["as it was"])
    usages = [(one.usage("a"), one.events[-1].selection) for one in served.values()]
    assert usages[0] == usages[1] == usages[2]


@pytest.mark.parametrize("family", ["llama", "gpt-oss", "gemma2"])
def test_sinks_and_window_that_hold_everything_are_dense(family, load_family):
    """Families with a sink logit for each head, with soft-caps, and with layers of a window."""
    loaded = load_family(family)
    some = {spec.layer_idx: (0,) for spec in loaded.specs if spec.window is None}
    dense = alone(loaded, {}, memory="as it was")
    assert_close(alone(loaded, some, window=200), dense)


def test_the_first_layers_that_read_everything_stream_where_heads_do(gqa):
    """A head whose KV is gone cannot read it, wherever it is; so none does, kept or not."""
    decode = make_decode("quest", gqa, dense_layers=1)
    prefill = make_prefill(
        "xattention", **SMALL_PREFILL | OWN_SMALL.get("xattention", {}) | SMALL | {"dense_layers": 1}
    )
    kept, dropped = (
        alone(gqa, STREAMING["one of each"], memory=memory, decode=decode, prefill=prefill)
        for memory in ("keep", "drop")
    )
    assert_close(dropped, kept)


def test_only_sinks_and_window_are_held(gqa):
    made = engine(gqa, STREAMING["one of each"])
    submit = Submit(request_id="a", prompt=PROMPT, sampling=SamplingParams(max_tokens=40, ignore_eos=True))
    made.submit(submit)
    sequence, pool = made._sequences["a"], made._cache._streaming
    while made.busy:
        made.step()
        if made.busy and sequence.num_generated:
            first = (sequence.computed - WINDOW) // PAGE_SIZE
            held = {index for index, page in enumerate(sequence.streaming_pages) if page != pool.void}
            assert held == {0, *range(first, -(-sequence.computed // PAGE_SIZE))}
            assert len(sequence.pages) == -(-sequence.computed // PAGE_SIZE)
    made.close()


@pytest.mark.parametrize(("prefill", "decode"), [("dense", "dense"), ("xattention", "quest")])
def test_a_prefix_cache_hit_is_what_would_be_computed(prefill, decode, gqa):
    methods = {
        "prefill": make_prefill(prefill, **SMALL_PREFILL | OWN_SMALL.get(prefill, {}) | SMALL),
        "decode": None if decode == "dense" else make_decode(decode, gqa),
    }
    longer = PROMPT + prompt(60, seed=9)
    cold = alone(gqa, STREAMING["one of each"], tokens=longer, **methods)
    made = engine(gqa, STREAMING["one of each"], "ab", **methods)
    serve(made, {"b": PROMPT}, max_tokens=20)
    warm = serve(made, {"a": longer}, max_tokens=20)
    made.close()
    assert first_event(warm.events, "a").cached_tokens == 96  # 117 less the tail of 8, in whole granules
    assert_close(warm, cold)


def test_nothing_is_shared_where_sinks_or_window_are_gone(gqa, monkeypatch):
    """The other heads' pages are there, but these heads could not go on from them."""
    monkeypatch.setattr("headway.engine.streaming_pages.REUSE_TOKENS", 0)
    branches = PROMPT[:64] + prompt(60, seed=9)
    cold = alone(gqa, STREAMING["one of each"], tokens=branches)
    made = engine(gqa, STREAMING["one of each"], "abc")
    serve(made, {"b": PROMPT}, max_tokens=20)
    early = serve(made, {"a": branches}, max_tokens=20)
    same = serve(made, {"c": PROMPT}, max_tokens=20)
    made.close()
    assert (
        first_event(early.events, "a").cached_tokens == 16
    )  # a beginning that every prompt reads as a whole
    assert first_event(same.events, "c").cached_tokens == 96
    assert_close(early, cold)


def test_preemption_and_neighbours_change_nothing(gqa):
    prompts = {name: prompt(70 + 3 * seed, seed=seed) for seed, name in enumerate("abc")}
    found = []
    for num_pages in (64, 34):
        made = engine(gqa, STREAMING["one of each"], "abc", num_pages=num_pages)
        found.append(serve(made, prompts, max_tokens=30))
        made.close()
    assert found[1].preemptions
    assert found[0].tokens == found[1].tokens
    for name, tokens in prompts.items():
        made = engine(gqa, STREAMING["one of each"])
        assert serve(made, {"a": tokens}, max_tokens=30).tokens["a"] == found[0].tokens[name]
        made.close()


def test_prompts_wait_for_pages_of_heads_that_stream(gqa):
    """Each takes ten while it is computed, and there are fifteen."""
    made = engine(gqa, STREAMING["one of each"], "abc", dropped=15)
    prompts = {name: prompt(70 + 3 * seed, seed=seed) for seed, name in enumerate("abc")}
    tokens = serve(made, prompts, max_tokens=5).tokens
    assert made.stats().preemptions_total == 0
    made.close()
    plenty = engine(gqa, STREAMING["one of each"], "abc")
    assert serve(plenty, prompts, max_tokens=5).tokens == tokens
    plenty.close()


def test_answers_below_the_gate_grow_until_one_must_give_way(gqa):
    """All their heads read everything, and twelve pages do not hold three answers."""
    decode = decode_dense.Method(decode_dense.Settings(dense_below=200))
    prompts = {name: prompt(9 + seed, seed=seed) for seed, name in enumerate("abc")}
    found = []
    for dropped in (60, 12):
        made = engine(gqa, STREAMING["one of each"], "abc", decode=decode, dropped=dropped)
        found.append(serve(made, prompts, max_tokens=40))
        made.close()
    assert [one.preemptions > 0 for one in found] == [False, True]
    assert found[0].tokens == found[1].tokens


def test_a_common_beginning_makes_nobody_wait(gqa, monkeypatch):
    """The first has given up pages of it while it answers; the second computes them, beside it."""
    monkeypatch.setattr("headway.engine.streaming_pages.REUSE_TOKENS", 0)
    made = engine(gqa, STREAMING["one of each"], "ab")
    sampling = SamplingParams(max_tokens=30, ignore_eos=True)
    made.submit(Submit(request_id="a", prompt=PROMPT, sampling=sampling))
    while not made._sequences["a"].num_generated:
        made.step()
    made.submit(Submit(request_id="b", prompt=PROMPT[:64] + prompt(60, seed=9), sampling=sampling))
    second = made._sequences["b"]
    for _ in range(4):
        made.step()
    assert second.num_generated
    assert made._sequences["a"].finish_reason is None
    made.close()


def test_dense_prompts_are_shared_whatever_was_answered(gqa, monkeypatch):
    """All heads read them whole, so all their pages stay."""
    monkeypatch.setattr("headway.engine.streaming_pages.REUSE_TOKENS", 0)
    prefill = prefill_dense.Method(prefill_dense.Settings(**SMALL | {"dense_below": 200}))
    made = engine(gqa, STREAMING["one of each"], "ab", prefill=prefill)
    serve(made, {"a": PROMPT}, max_tokens=40)
    again = serve(made, {"b": PROMPT}, max_tokens=5)
    made.close()
    assert first_event(again.events, "b").cached_tokens == (len(PROMPT) - 1) // PAGE_SIZE * PAGE_SIZE


def test_what_would_never_fit_is_refused(gqa):
    made = engine(gqa, STREAMING["one of each"], dropped=15)
    scored = SamplingParams(max_tokens=5, prompt_logprobs=0)
    with pytest.raises(RequestError, match=r"prompt_logprobs: .* first 200 tokens .* room for 56 tokens"):
        made.submit(Submit(request_id="a", prompt=prompt(200, seed=1), sampling=scored))
    assert not made.busy
    made.close()


@pytest.mark.parametrize("family", ["deepseek-v3", "gemma4"])
def test_models_without_heads_of_their_own_cannot_drop(family, load_family):
    loaded = load_family(family)
    routes = HeadRoutes(loaded.specs, {0: (0,)}, SINKS, WINDOW)
    with pytest.raises(ConfigError, match=r"^recipe\.memory\.streaming_heads: layer \d+ "):
        cache_layout(routes, loaded.specs, torch.device("cpu"), drop=True)
    assert not cache_layout(routes, loaded.specs, torch.device("cpu"), drop=False).streaming


def test_some_head_must_keep_its_kv(gqa):
    routes = HeadRoutes(gqa.specs, {0: (0, 1), 1: (0, 1)}, SINKS, WINDOW)
    with pytest.raises(
        ConfigError, match=r"drop needs a head that keeps its KV; lower recipe\.heads\.sparsity"
    ):
        cache_layout(routes, gqa.specs, torch.device("cpu"), drop=True)
