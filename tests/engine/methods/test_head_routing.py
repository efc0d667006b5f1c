"""Routing of heads: every head reads as it would alone, whatever else is served."""

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError, RequestError
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SamplingParams, Submit
from headway.engine.methods.decode import AnyMethod as DecodeMethod
from headway.engine.methods.decode import dense as decode_dense
from headway.engine.methods.decode import streaming as decode_streaming
from headway.engine.methods.prefill import AnyMethod as PrefillMethod
from headway.engine.methods.prefill import dense as prefill_dense
from headway.engine.methods.prefill import streaming as prefill_streaming
from headway.engine.methods.routed import RoutedDecode, RoutedPrefill
from headway.engine.recipes import Recipes
from headway.engine.selection.group import attend
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.layer_view import GroupStep, LayerView
from headway.kernels.paged_attention import plan
from tests.engine.hash_runner import first_event, make_submit

from . import prefill_layers
from .driver import PAGE_SIZE, Job, assert_same, drive, lone_layer, prompt, tokens_of
from .driver import make as make_decode
from .layers import Layers, randn, spec
from .test_decode_matrix import NAMES as DECODES
from .test_decode_matrix import OWN_ROOM, ROOM
from .test_prefill_matrix import NAMES as PREFILLS
from .test_prefill_matrix import OWN_SMALL, TILE
from .test_prefill_matrix import SMALL as SMALL_PREFILL
from .test_prefill_matrix import made as make_prefill
from .test_prefill_serving import PROMPT, Served, assert_close, engine_of, serve

SINKS, WINDOW, TAIL = 3, 10, 5
HALF = {0: (1,), 1: (0,)}
"""Of two layers with two KV heads each, one of each."""
SMALL = {"dense_below": 16, "dense_tail": 8, "tile": 16}
ROUTABLE = [name for name in DECODES if name not in ("adaptive", "hylra")]
UNWATCHING = [name for name in ROUTABLE if name not in {"h2o", "snapkv"}]
"""Methods that need not have seen the prompt."""
BASES = torch.linalg.qr(randn(4, 16, 16, seed=3)).Q[..., :4]


def routes(
    loaded: LoadedModel,
    streaming: Mapping[int, Collection[int]] = HALF,
    window: int = WINDOW,
    question_reads_all: bool = False,
) -> HeadRoutes:
    return HeadRoutes(loaded.specs, streaming, SINKS, window, question_reads_all=question_reads_all)


def routed_prefill(loaded: LoadedModel, own: PrefillMethod | None = None, **wanted: Any) -> RoutedPrefill:
    dense = prefill_dense.Method(prefill_dense.Settings(**SMALL))
    return RoutedPrefill(own or dense, routes(loaded, **wanted))


def routed_decode(loaded: LoadedModel, own: DecodeMethod | None = None, **wanted: Any) -> RoutedDecode:
    dense = decode_dense.Method(decode_dense.Settings(dense_below=0))
    return RoutedDecode(own or dense, routes(loaded, **wanted))


def alone(
    loaded: LoadedModel, prefill: PrefillMethod | None, decode: DecodeMethod | None,
    tokens: list[int] = PROMPT, **options: int,
) -> Served:  # fmt: skip
    """One request, "a", in an engine of its own."""
    engine = engine_of(
        loaded, {} if prefill is None else {"a": prefill}, {} if decode is None else {"a": decode}, **options
    )
    served = serve(engine, {"a": tokens}, max_tokens=8)
    engine.close()
    return served


def test_nothing_is_remembered_of_heads_that_stream(gqa):
    own = make_decode("recycled", gqa)
    method = routed_decode(gqa, own, streaming={0: (0, 1), 1: (0,)})
    engine = engine_of(gqa, {}, {"a": method})
    engine.submit(make_submit("a", PROMPT, max_tokens=20))
    for _ in range(6):
        engine.step()
    (stack,) = engine._runner._stacks._stacks.values()
    held = sum(tensor.nbytes for tensor in stack.tensors.values())
    engine.close()
    assert held == method.state_bytes(gqa.specs, len(PROMPT)) < own.state_bytes(gqa.specs, len(PROMPT)) / 3


heads_of_eight = st.sets(st.integers(0, 7), max_size=8)


@given(heads_of_eight)
def test_runs_are_all_heads_once_in_order(streaming):
    layer = spec(num_heads=16, num_kv_heads=8, sinks=torch.arange(16.0))
    runs = HeadRoutes([layer], {0: streaming}, 1, 1).runs(layer)
    kv_heads = [head for run in runs for head in range(8)[run.kv_heads]]
    assert kv_heads == list(range(8))
    assert [run.streams for run in runs for _ in range(run.spec.num_kv_heads)] == [
        h in streaming for h in range(8)
    ]
    assert torch.cat([run.spec.sinks for run in runs]).tolist() == list(range(16))
    assert all(run.spec.num_heads == len(range(16)[run.heads]) == 2 * run.spec.num_kv_heads for run in runs)
    assert all(one.streams != other.streams for one, other in pairwise(runs))
    assert [run.whole for run in runs] == [len(runs) == 1] * len(runs)


@pytest.mark.parametrize("name", ["dense", *PREFILLS])
@pytest.mark.parametrize("streaming", [{0}, {1, 2}, {1, 3}])
def test_in_prefill_each_run_of_heads_reads_as_if_it_were_a_layer(name, streaming):
    """Oracle: the same methods over layers that hold copies of those heads alone."""
    length = 6 * TILE
    query, key, value = randn(length, 8, 16), randn(length, 4, 16, seed=1), randn(length, 4, 16, seed=2)
    own = make_prefill(name, dense_below=TILE, dense_tail=5)
    layer = spec(num_heads=8, num_kv_heads=4)
    both = HeadRoutes([layer], {0: streaming}, SINKS, WINDOW)
    done = prefill_layers.prefill(RoutedPrefill(own, both), query, key, value)
    stream = prefill_streaming.Method(
        prefill_streaming.Settings(
            sink_size=SINKS, window_size=WINDOW, tile=TILE, dense_below=TILE, dense_tail=0
        )
    )
    pairs = 0
    for run in both.runs(layer):
        rows = (query[:, run.heads], key[:, run.kv_heads], value[:, run.kv_heads])
        expected = prefill_layers.prefill(stream if run.streams else own, *(each.clone() for each in rows))
        torch.testing.assert_close(done.out[:, run.heads], expected.out, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(done.lse[:, run.heads], expected.lse, atol=1e-5, rtol=1e-5)
        pairs += expected.pairs
    assert done.pairs == pairs


@pytest.mark.parametrize("length", [1, TILE - 1, TILE + 1, 3 * TILE + 7])
@pytest.mark.parametrize("streaming", [{0}, {1}, {0, 1}, set()])
def test_in_prefill_streaming_heads_read_sinks_and_window_to_the_end(streaming, length):
    """Also in a tile that the prompt's end cuts short."""
    query, key = randn(length, 4, 16), randn(length, 2, 16, seed=1)
    method = RoutedPrefill(
        prefill_dense.Method(prefill_dense.Settings(dense_below=0, tile=TILE)),
        HeadRoutes([spec()], {0: streaming}, SINKS, WINDOW),
    )
    counts, pairs = prefill_layers.read_counts(method, query, key, granules=2)
    row, place = torch.arange(length)[:, None], torch.arange(length)
    causal = place <= row
    near = causal & ((place < SINKS) | (place >= row // TILE * TILE - WINDOW))
    expected = torch.stack([near if head // 2 in streaming else causal for head in range(4)]).double()
    torch.testing.assert_close(counts, expected, atol=1e-3, rtol=0)
    assert pairs == expected.sum()


@pytest.mark.parametrize("length", [TAIL - 1, TILE + 1, 3 * TILE + 7])
def test_a_question_may_read_all(length):
    query, key = randn(length, 4, 16), randn(length, 2, 16, seed=1)
    settings = prefill_dense.Settings(dense_below=0, tile=TILE, dense_tail=TAIL)
    method = RoutedPrefill(
        prefill_dense.Method(settings),
        HeadRoutes([spec()], {0: {1}}, SINKS, WINDOW, question_reads_all=True),
    )
    counts, _ = prefill_layers.read_counts(method, query, key, granules=2)
    row, place = torch.arange(length)[:, None], torch.arange(length)
    causal = place <= row
    tail = prefill_layers.dense_rows(length, settings)[:, None]
    near = causal & ((place < SINKS) | (place >= row // TILE * TILE - WINDOW) | tail)
    expected = torch.stack([causal, causal, near, near]).double()
    torch.testing.assert_close(counts, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("streaming", [{0}, {1, 2}, {1, 3}, {0, 1, 2, 3}, set()])
@pytest.mark.parametrize("facts", [{}, {"softcap": 2.0}, {"sinks": torch.linspace(-1.0, 2.0, 8)}])
def test_in_decode_streaming_heads_read_sinks_and_window_and_the_others_all(streaming, facts):
    lengths = [100, 9, 14, 57]
    layer = lone_layer(lengths, num_heads=8, num_kv_heads=4, **facts)
    method = RoutedDecode(
        decode_dense.Method(decode_dense.Settings()), HeadRoutes([layer.spec], {0: streaming}, SINKS, WINDOW)
    )
    query = randn(4, 8, 8, seed=5)
    out = attend(query, layer, method)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(out[row], exact(query[row], row, layer, streaming), atol=1e-5, rtol=1e-5)
        member = layer.step.stack.members[row]
        shares = [min(length, SINKS + WINDOW) if head in streaming else length for head in range(4)]
        assert (member.layer_steps, member.context) == (1, length)
        assert member.attended == pytest.approx(sum(shares) / 4)


def exact(query: Tensor, row: int, layer, streaming: Collection[int]) -> Tensor:
    """[Hq, Dv] by plain softmax."""
    keys, values = (tokens_of(layer, row, cache) for cache in (layer.key_cache, layer.value_cache))
    scores = torch.einsum("hd,nhd->hn", query, keys.repeat_interleave(2, 1)) * layer.spec.scale
    if layer.spec.softcap is not None:
        scores = layer.spec.softcap * torch.tanh(scores / layer.spec.softcap)
    place, length = torch.arange(len(keys)), len(keys)
    between = (place >= SINKS) & (place < length - WINDOW)
    for head in range(8):
        if head // 2 in streaming:
            scores[head, between] = -torch.inf
    if layer.spec.sinks is not None:
        scores = torch.cat((scores, layer.spec.sinks[:, None]), 1)
    return torch.einsum("hn,nhd->hd", scores.softmax(-1)[:, :length], values.repeat_interleave(2, 1))


@pytest.mark.parametrize("name", ROUTABLE)
def test_every_decode_method_with_room_for_everything_is_dense_in_its_heads(name, load_family):
    loaded, streaming = load_family("gpt-neox"), {0: (1,), 1: (0, 2)}
    (expected,) = drive(loaded, [Job(PROMPT, routed_decode(loaded, streaming=streaming))], 6)
    own = make_decode(name, loaded, **OWN_ROOM.get(name, ROOM))
    (trace,) = drive(
        loaded, [Job(PROMPT, routed_decode(loaded, own, streaming=streaming), expected.tokens)], 6
    )
    assert_same(trace, expected)


def decoded(method: DecodeMethod, keys: Tensor, queries: Tensor, bases: Tensor) -> Tensor:
    """Attention [steps, Hq, D] of one layer, a step for each of the last keys [N, Hkv, D]."""
    steps, heads, kv_heads = len(queries), queries.shape[1], keys.shape[1]
    kept = {sidecar: {0: bases} for sidecar in method.sidecars() if sidecar.kind == "low_rank"}
    layers = Layers(method, [keys[None, :-steps]], bases=kept, num_heads=heads, num_kv_heads=kv_heads)
    outs = []
    for step, query in enumerate(queries):
        layers.append([keys[None, len(keys) - steps + step, None]])
        lengths = [layers.keys[0].shape[1]]
        whole = plan([1], lengths, layers.tables, PAGE_SIZE, "cpu")
        group = GroupStep(whole, layers.stack, torch.tensor([step == 0]), torch.tensor([step]))
        view = LayerView(LayerCache(layers.specs[0], *layers.cache.pages(0), layers.cache.sidecars), group)
        outs.append(attend(query[None], view, method)[0])
    return torch.stack(outs)


@pytest.mark.parametrize("streaming", [{0}, {1, 2}])
@pytest.mark.parametrize("name", UNWATCHING)
def test_in_decode_each_run_of_heads_reads_as_if_it_were_a_layer(name, streaming, gqa):
    """With lists of its own, remembered from step to step; oracle: layers that hold copies of those heads."""
    similarity = {"similarity": 0.5} if name in {"headway", "recycled", "tokenselect"} else {}
    own = make_decode(name, gqa, **similarity)
    layer = spec(num_heads=8, num_kv_heads=4)
    both = HeadRoutes([layer], {0: streaming}, SINKS, WINDOW)
    keys, queries = randn(130, 4, 16, seed=7), randn(5, 8, 16, seed=8) + 2 * randn(8, 16, seed=9)
    out = decoded(RoutedDecode(own, both), keys, queries, BASES)
    stream = decode_streaming.Method(decode_streaming.Settings(sink_size=SINKS, window_size=WINDOW))
    for run in both.runs(layer):
        method, kv_heads = stream if run.streams else own, run.kv_heads
        expected = decoded(method, keys[:, kv_heads], queries[:, run.heads], BASES[kv_heads])
        torch.testing.assert_close(out[:, run.heads], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt-oss", "gemma2", "deepseek-v3"])
def test_sinks_and_window_that_hold_everything_are_dense(family, load_family):
    loaded = load_family(family)
    everybody = {each.layer_idx: range(each.num_kv_heads) for each in loaded.specs}
    dense = alone(loaded, None, None)
    some = {layer: heads[:1] for layer, heads in everybody.items() if layer % 2 == 0}
    for streaming in (some, everybody):
        wanted = {"streaming": streaming, "window": 200}
        served = alone(loaded, routed_prefill(loaded, **wanted), routed_decode(loaded, **wanted))
        assert_close(served, dense)
        assert served.usage("a").density == 1.0
        assert served.events[-1].selection.kv_read_share == 1.0


def test_streaming_heads_change_the_answer(gqa):
    """Or else the tests below would prove nothing."""
    dense = alone(gqa, None, None)
    for found in (alone(gqa, routed_prefill(gqa), None), alone(gqa, None, routed_decode(gqa))):
        assert not torch.allclose(found.logits["a"][1], dense.logits["a"][1], atol=1e-3)


def test_what_is_read_is_counted(gqa):
    served = alone(gqa, routed_prefill(gqa), routed_decode(gqa))
    usage = served.events[-1].selection
    lengths = range(len(PROMPT) + 1, len(PROMPT) + 8)
    assert usage.method == "dense"
    assert usage.steps == len(lengths)
    assert usage.tokens_per_step == pytest.approx(sum(n + SINKS + WINDOW for n in lengths) / 2 / len(lengths))
    tiles = range(0, len(PROMPT), TILE)
    full = len(PROMPT) * (len(PROMPT) + 1) // 2
    streamed = sum(
        row + 1 if tile == 0 else min(tile, SINKS) + min(WINDOW, tile - SINKS) + row - tile + 1
        for tile in tiles
        for row in range(tile, min(tile + TILE, len(PROMPT)))
    )
    assert served.usage("a").density == pytest.approx((full + streamed) / 2 / full)


def test_below_the_gates_it_is_the_dense_path(gqa):
    own = prefill_dense.Method(prefill_dense.Settings(**SMALL | {"dense_below": 117}))
    decode = decode_dense.Method(decode_dense.Settings(dense_below=130))
    served = alone(gqa, routed_prefill(gqa, own), routed_decode(gqa, decode))
    dense = alone(gqa, None, None)
    assert torch.equal(torch.stack(served.logits["a"]), torch.stack(dense.logits["a"]))
    assert served.usage("a") is None


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        ("dense", "dense"),
        ("dense", "recycled"),
        ("xattention", "quest"),
        ("anchor", "dense"),
        ("flexprefill", "quest"),
    ],
)
@pytest.mark.parametrize("question_reads_all", [False, True])
def test_a_prefix_cache_hit_is_what_would_be_computed(prefill, decode, question_reads_all, gqa):
    own = make_prefill(prefill, **SMALL_PREFILL | OWN_SMALL.get(prefill, {}) | SMALL)
    method = routed_prefill(gqa, own, question_reads_all=question_reads_all)
    select = routed_decode(gqa, None if decode == "dense" else make_decode(decode, gqa))
    longer = PROMPT + prompt(60, seed=9)
    cold = alone(gqa, method, select, longer)
    engine = engine_of(gqa, dict.fromkeys("ab", method), dict.fromkeys("ab", select))
    serve(engine, {"b": PROMPT}, max_tokens=20)
    warm = serve(engine, {"a": longer}, max_tokens=8)
    engine.close()
    assert first_event(warm.events, "a").cached_tokens == 96  # 117 less the tail of 8, in whole granules
    assert_close(warm, cold)


def test_other_routes_share_nothing(gqa):
    methods = {
        "a": routed_prefill(gqa),
        "b": routed_prefill(gqa, streaming={0: (1,), 1: (1,)}),
        "c": routed_prefill(gqa, window=11),
        "d": prefill_streaming.Method(prefill_streaming.Settings(**SMALL)),
        "e": routed_prefill(gqa, question_reads_all=True),
    }
    engine = engine_of(gqa, methods)
    for request_id in ("dense", *methods):
        served = serve(engine, {request_id: PROMPT})
        assert first_event(served.events, request_id).cached_tokens == 0
    engine.close()


def test_preemption_changes_nothing(gqa):
    """Three prompts fit, but not with their answers."""
    prompts = {name: prompt(70 + 3 * seed, seed=seed) for seed, name in enumerate("abc")}
    decodes = {"a": routed_decode(gqa), "b": routed_decode(gqa, make_decode("recycled", gqa))}
    found = []
    for num_pages in (64, 34):
        engine = engine_of(gqa, dict.fromkeys("abc", routed_prefill(gqa)), decodes, num_pages=num_pages)
        found.append(serve(engine, prompts, max_tokens=30))
        engine.close()
    assert found[1].preemptions
    assert found[0].tokens == found[1].tokens


def test_neighbours_change_nothing(gqa):
    """Routed and plain requests, prompts and decodes, in the same steps."""
    own = prefill_streaming.Method(prefill_streaming.Settings(**SMALL))
    prefills = {"a": routed_prefill(gqa), "b": routed_prefill(gqa, own), "c": own}
    selecting = routed_decode(gqa, make_decode("quest", gqa))
    plain = routed_decode(gqa)
    decodes = {"a": plain, "b": selecting, "d": plain, "e": make_decode("streaming", gqa)}
    prompts = {name: prompt(60 + 20 * seed, seed=seed) for seed, name in enumerate("abcdef")}
    engine = engine_of(gqa, prefills, decodes, max_step_tokens=96)
    mixed = serve(engine, prompts, max_tokens=8)
    engine.close()
    for name, tokens in prompts.items():
        engine = engine_of(gqa, {name: prefills[name]} if name in prefills else {},
                           {name: decodes[name]} if name in decodes else {})  # fmt: skip
        assert_close(mixed, serve(engine, {name: tokens}, max_tokens=8), name, name)
        engine.close()


def recipes(loaded: LoadedModel, streaming: Mapping[int, Collection[int]], **section: Any) -> Recipes:
    config = parse(EngineConfig, {"recipe": section}).recipe
    found = HeadRoutes(loaded.specs, streaming, SINKS, WINDOW)
    return Recipes(config, loaded.specs, PAGE_SIZE, 1024, found or None)


def submit(**choice: Any) -> Submit:
    return Submit(request_id="r", prompt=[1], sampling=SamplingParams(), **choice)


def test_with_routes_dense_requests_are_routed_too(gqa):
    made = recipes(gqa, HALF)
    decode, prefill = made.methods(submit())
    assert (type(decode), type(prefill)) == (RoutedDecode, RoutedPrefill)
    assert made.methods(submit(decode={"method": "dense"})) == (decode, prefill)
    assert recipes(gqa, {}).methods(submit()) == (None, None)


def test_a_method_that_hands_lists_from_layer_to_layer_is_refused(gqa):
    with pytest.raises(ConfigError, match=r"^recipe\.decode\.method: hylra hands .* recipe\.heads"):
        recipes(gqa, HALF, decode={"method": "hylra"})
    with pytest.raises(
        ConfigError, match=r"^recipe\.requests\.methods: hylra cannot be offered: method: hylra"
    ):
        recipes(gqa, HALF, requests={"methods": ["hylra"]})
    recipes(gqa, {}, decode={"method": "hylra"})
    with pytest.raises(RequestError, match="not offered"):
        recipes(gqa, HALF).methods(submit(decode={"method": "hylra"}))
