"""One request can never kill the loop, nor change another's answer."""

import logging

import pytest
import torch

from headway.engine.errors import EngineDead, HeadwayError, QueueFull, RequestError, RequestFailed
from headway.engine.failures import error_class, to_error, to_event
from headway.engine.isolation import isolated
from headway.engine.messages import Failed, Tokens
from headway.engine.sampler import Sampler

from .hash_runner import alone, answers, finish, make_engine, make_submit

CURSED = 13


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="headway.engine.isolation")


def test_a_model_error_fails_the_request_that_causes_it() -> None:
    engine, runner = make_engine(32)
    runner.fails_on = {CURSED}
    good = [make_submit(f"good{n}", [2 + n] * 9, max_tokens=1) for n in range(2)]
    for submit in (*good, make_submit("bad", [3] * 8 + [CURSED], progress=True)):
        engine.submit(submit)
    events = finish(engine)
    failures = [event for event in events if isinstance(event, Failed)]
    assert [(e.request_id, e.kind) for e in failures] == [("bad", "RequestFailed")]
    assert "injected" not in failures[0].message
    rest = answers([event for event in events if event.request_id != "bad"])
    assert rest == {submit.request_id: alone(submit, 1) for submit in good}
    assert engine.stats().failures_total == 1
    assert engine.stats().pages_used == 0


def test_an_error_that_does_not_come_again_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = make_engine(32)
    healthy, faults = runner.run, [torch.OutOfMemoryError("once")]

    def run(batch: object) -> torch.Tensor:
        if faults and len(batch.chunks) > 1:
            raise faults.pop()
        return healthy(batch)

    monkeypatch.setattr(runner, "run", run)
    submits = [make_submit(str(n), [2 + n] * 9, max_tokens=3) for n in range(3)]
    for submit in submits:
        engine.submit(submit)
    assert answers(finish(engine)) == {submit.request_id: alone(submit, 3) for submit in submits}
    assert not faults


@pytest.mark.parametrize("whole_call", [False, True])
def test_a_sampling_error_fails_one_row(monkeypatch: pytest.MonkeyPatch, whole_call: bool) -> None:
    engine, _ = make_engine(32)
    healthy = Sampler.sample

    def sample(self: Sampler, logits: torch.Tensor, sequences: list) -> list:
        names = [sequence.request_id for sequence in sequences]
        if whole_call and "bad" in names:
            raise IndexError("a bug")
        for row, name in enumerate(names):
            if name == "bad":
                logits[row] = torch.nan
        return healthy(self, logits, sequences)

    monkeypatch.setattr(Sampler, "sample", sample)
    good = make_submit("good", [2] * 9, max_tokens=4)
    engine.submit(good)
    engine.submit(make_submit("bad", [3] * 9, max_tokens=4))
    events = finish(engine)
    assert [e.request_id for e in events if isinstance(e, Failed)] == ["bad"]
    assert answers([e for e in events if isinstance(e, Tokens)]) == {"good": alone(good, 4)}


def test_a_scoring_error_fails_its_prompt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*_: object) -> list:
        raise RequestFailed("no probabilities")

    monkeypatch.setattr(Sampler, "score", score)
    engine, _ = make_engine(32)
    good = make_submit("good", [2] * 9, max_tokens=4)
    engine.submit(good)
    engine.submit(make_submit("bad", [3] * 9, prompt_logprobs=1))
    events = finish(engine)
    assert [e.request_id for e in events if isinstance(e, Failed)] == ["bad"]
    assert answers([e for e in events if isinstance(e, Tokens)]) == {"good": alone(good, 4)}


def test_a_lost_accelerator_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = make_engine()

    def run(_: object) -> torch.Tensor:
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(runner, "run", run)
    engine.submit(make_submit("any", [2]))
    with pytest.raises(EngineDead, match="device-side assert"):
        engine.step()


def test_only_what_raises_again_is_blamed() -> None:
    calls = []

    def work(items: list[int]) -> list[int]:
        calls.append(list(items))
        if 0 in items:
            raise ZeroDivisionError
        return [1 // item for item in items]

    assert isolated(work, [1, 2]) == [1, 0]
    first, zero, last = isolated(work, [1, 0, 1])
    assert (first, last) == (1, 1)
    assert isinstance(zero, RequestFailed)
    assert calls == [[1, 2], [1, 0, 1], [1], [0], [1]]


@pytest.mark.parametrize(
    "error",
    [RequestError("wrong", "prompt"), QueueFull("full", 7), RequestFailed("broke"), EngineDead("gone")],
)
def test_an_error_survives_the_way_to_the_client(error: HeadwayError) -> None:
    again = to_error(to_event("r", error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_an_unforeseen_error_tells_nothing_but_its_class() -> None:
    event = to_event("r", KeyError("/secret/path"))
    assert event.kind == "RequestFailed"
    assert "KeyError" in event.message
    assert "secret" not in event.message


def test_an_unknown_kind_of_error_is_a_failed_request() -> None:
    assert error_class("annotations") is RequestFailed
    assert error_class("Exception") is RequestFailed
