"""What every decode method owes, whatever it selects: found by the registry, run over tiny models."""

import gc
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from headway.engine.core import Engine
from headway.engine.errors import ConfigError
from headway.engine.messages import Tokens
from headway.engine.methods import decode
from headway.engine.methods.decode import AnyMethod
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.state import SelectionState
from tests.engine.hash_runner import answers, finish, first_event, make_submit

from .driver import Job, Trace, assert_same, drive, make, make_engine, prompt, settings_of, watch

NAMES = [name for name in decode.names() if name != "dense"]
GROWING = {"snapkv"}
"""Methods whose budget is that of the prompt: what they generate comes on top."""
ROOM: dict[str, Any] = {"budget": 512}
OWN_ROOM: dict[str, dict[str, Any]] = {name: {"window_size": 512} for name in ("adaptive", "streaming")}
"""Settings under which a method leaves nothing out."""
MAX_TOKENS = 9
PROMPT = prompt(117)


def made(name: str, loaded, **wanted) -> AnyMethod:
    try:
        return make(name, loaded, **wanted)
    except ConfigError as refused:
        pytest.skip(str(refused))


@pytest.fixture(scope="module")
def dense(load_family):
    """`dense(family)` → the dense trace of PROMPT."""
    traces: dict[str, Trace] = {}

    def get(family: str) -> Trace:
        if family not in traces:
            (traces[family],) = drive(load_family(family), [Job(PROMPT)], MAX_TOKENS)
        return traces[family]

    return get


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("llama", id="grouped queries"),
        pytest.param("gpt-oss", id="sliding layer, sink logits"),
        pytest.param("deepseek-v3", id="latent head"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_with_room_for_everything_it_is_dense(name, family, load_family, dense):
    loaded, expected = load_family(family), dense(family)
    method = made(name, loaded, **OWN_ROOM.get(name, ROOM))
    (trace,) = drive(loaded, [Job(PROMPT, method, expected.tokens)], MAX_TOKENS, largest_chunk=50)
    assert_same(trace, expected)


@pytest.mark.parametrize(
    "family", [pytest.param("llama", id="grouped queries"), pytest.param("gpt-neox", id="a head each")]
)
@pytest.mark.parametrize("name", NAMES)
def test_selections_are_well_formed(name, family, load_family):
    """Ascending, unique and within the sequence; sinks, window and tail there; budget kept."""
    loaded = load_family(family)
    method = made(name, loaded)
    sizes = []

    def check(selection: DecodeSelection, layer: LayerView, _query: Tensor) -> None:
        assert selection.indices.dtype == torch.int32
        assert selection.indices.shape[1] in (1, layer.spec.num_kv_heads, layer.spec.num_heads)
        for row, length in enumerate(layer.plan.host_kv_lens):
            if selection.dense is None or not selection.dense[row].all():
                sizes.append(check_row(selection.indices[row].tolist(), selection.unit, length, method))

    watch(method, check)
    jobs = [Job(PROMPT, method), Job(prompt(30, seed=1), method), Job(prompt(58, seed=2), method)]
    traces = drive(loaded, jobs, MAX_TOKENS, largest_chunk=50)
    assert sizes
    assert min(sizes) > 0
    assert all(logits.isfinite().all() for trace in traces for logits in trace.logits)


def check_row(heads: list[list[int]], unit: int, length: int, method: AnyMethod) -> int:
    """Check one sequence's lists; returns the units of the shortest."""
    settings = method.settings
    forced = {token // unit for token in range(min(settings.sink_size, length))}
    forced |= {token // unit for token in range(max(0, length - settings.window_size), length)}
    budget = getattr(settings, "budget", settings.sink_size + settings.window_size)
    budget += MAX_TOKENS if settings.method in GROWING else 0
    for units in heads:
        chosen = [one for one in units if one >= 0]
        assert units == chosen + [-1] * (len(units) - len(chosen))
        assert chosen == sorted(set(chosen))
        assert chosen[-1] * unit < length
        assert forced <= set(chosen)
        assert len(chosen) <= -(-budget // unit)
    return min(sum(one >= 0 for one in units) for units in heads)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_pages_and_neighbours_change_nothing(name, gqa):
    method = made(name, gqa)
    prompts = [PROMPT, prompt(64, seed=3)]
    alone = [drive(gqa, [Job(one, method)], MAX_TOKENS)[0] for one in prompts]
    other = make("quest", gqa, budget=64)
    jobs = [Job(one, method) for one in prompts]
    jobs += [
        Job(prompt(90, seed=4), other),
        Job(prompt(71, seed=5)),
        Job(PROMPT, made(name, gqa, sink_size=4)),
    ]
    mixed = drive(gqa, jobs, MAX_TOKENS, seed=1, largest_chunk=30)
    for trace, expected in zip(mixed, alone, strict=False):
        assert_same(trace, expected)


@pytest.mark.parametrize("name", NAMES)
def test_below_the_gate_it_is_the_dense_path(name, gqa, dense):
    method = made(name, gqa, dense_below=len(PROMPT) + MAX_TOKENS)
    (trace,) = drive(gqa, [Job(PROMPT, method)], MAX_TOKENS)
    assert trace.tokens == dense("llama").tokens
    assert torch.equal(torch.stack(trace.logits), torch.stack(dense("llama").logits))


@pytest.mark.parametrize("name", NAMES)
def test_the_gate_opens_while_it_generates(name, gqa, dense):
    method = made(name, gqa, dense_below=len(PROMPT) + 5)
    lengths: list[int] = []
    watch(method, lambda _selection, layer, _query: lengths.extend(layer.plan.host_kv_lens))
    (trace,) = drive(gqa, [Job(PROMPT, method)], MAX_TOKENS)
    assert torch.equal(torch.stack(trace.logits[:5]), torch.stack(dense("llama").logits[:5]))
    assert lengths
    assert min(lengths) > len(PROMPT) + 5


def submit_all(
    engine: Engine, prompts: dict[str, list[int]], max_tokens: int, **choices: dict[str, Any]
) -> None:
    for request_id, tokens in prompts.items():
        submit = make_submit(request_id, tokens, max_tokens)
        engine.submit(msgspec.structs.replace(submit, decode=choices.get(request_id)))


@pytest.mark.parametrize("name", NAMES)
def test_preemption_changes_nothing(name, gqa):
    """Three contexts of which two fit, and a dense one among them."""
    made(name, gqa)
    settings = settings_of(name, dense_below=60)
    prompts = {"a": prompt(48, seed=6), "b": prompt(50, seed=7), "c": prompt(44, seed=8)}
    found = []
    for num_pages in (64, 21):
        engine = make_engine(gqa, num_pages, settings)
        submit_all(engine, prompts, 17, c={"method": "dense"})
        found.append(answers(finish(engine)))
        preempted = engine.stats().preemptions_total
        engine.close()
    assert preempted
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "wanted", [{}, {"dense_layers": 1, "similarity": 0.5}, {"fraction": 0.6, "similarity": 0.5}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_it_remembers_no_more_than_it_says(name, wanted, gqa):
    """Of two requests, whose group has changed once: they came one after the other."""
    method = made(name, gqa, **wanted)
    engine = make_engine(gqa, 64, settings_of(name, **wanted))
    for request_id in "ab":
        submit_all(engine, {request_id: PROMPT}, 20)
        for _ in range(5):
            engine.step()
    (stack,) = engine._runner._stacks._stacks.values()
    held = sum(tensor.nbytes for tensor in stack.tensors.values())
    held += sum(row.nbytes for member in stack.members for row in member.rows.values())
    said = 2 * method.state_bytes(gqa.specs, len(PROMPT) + 10)
    engine.close()
    assert len(stack.members) == 2
    assert 0.8 * said <= held <= said


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_cache_hit_changes_nothing(name, gqa):
    """Asked again, asked after a dense request, and asked in a cold cache."""
    sees_all = made(name, gqa).sees_all
    longer = PROMPT + prompt(5, seed=9)
    events = []
    for warm in (False, True):
        engine = make_engine(gqa, 64, settings_of(name))
        if warm:
            submit_all(engine, {"own": PROMPT, "dense": PROMPT}, 10, dense={"method": "dense"})
            finish(engine)
        submit_all(engine, {"asked": longer}, 10)
        events.append(finish(engine))
        engine.close()
    cold, hit = (first_event(one, "asked") for one in events)
    assert cold.cached_tokens == 0
    assert hit.cached_tokens >= 64 or sees_all
    assert answers(events[0]) == answers(events[1])


def finished(events: list[Tokens]) -> set[str]:
    return {event.request_id for event in events if event.finish_reason}


def test_all_methods_in_one_engine_leave_nothing_behind(gqa):
    """Few pages for all of them: some are preempted, and some aborted, running or waiting."""
    engine = make_engine(gqa, 40, settings_of("quest"), *NAMES)
    plain = {
        name: {key: value for key, value in settings_of(name).items() if isinstance(value, str | int | float)}
        for name in NAMES
    }
    submit_all(engine, {name: prompt(50, seed=seed) for seed, name in enumerate(NAMES)}, 24, **plain)
    events = []
    for _ in range(30):
        events += engine.step()
        engine.check()
    aborted = set(NAMES[::4]) - finished(events)
    for name in aborted:
        engine.abort(name)
    events += finish(engine)
    assert aborted
    assert finished(events) == set(NAMES) - aborted
    assert engine.stats().preemptions_total
    assert engine.stats().pages_used == 0
    for event in events:
        if event.finish_reason:
            assert event.selection.method == event.request_id
            assert event.selection.steps == 23
            assert 0 < event.selection.kv_read_share <= 1
    engine.close()
    gc.collect()
    assert not any(type(one) is SelectionState for one in gc.get_objects())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_fails_is_repeated_as_if_nothing_had_been(name, gqa):
    """It fails behind the layers that have selected already; each of its two sequences then runs alone.

    Neither answers nor usage tell.
    """
    made(name, gqa)
    prompts = {"a": prompt(60, seed=10), "b": prompt(56, seed=11)}
    found = []
    for failing in ((), (0, 2)):
        pairs = iter(range(1000))
        engine = make_engine(gqa, 32, settings_of(name))

        def fail(_module, inputs, _output, failing=failing, pairs=pairs) -> None:
            if inputs[0].shape[1] == 2 and next(pairs) in failing:
                raise ValueError("an injected fault")

        handle = gqa.model.model.norm.register_forward_hook(fail)
        submit_all(engine, prompts, 6)
        events = finish(engine)
        usage = {event.request_id: event.selection for event in events if event.finish_reason}
        found.append((answers(events), usage))
        handle.remove()
        engine.close()
        assert next(pairs) > 3
    assert set(found[0][1]) == set(prompts)
    assert found[0] == found[1]
