"""Order, fairness, preemption and limits, seen through an engine around the hash double."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway.engine.core import Engine
from headway.engine.errors import ContextTooLong, QueueFull, RequestError
from headway.engine.messages import Progress, Tokens
from headway.engine.scheduler import SCORED_ROWS

from .hash_runner import PREFILL, HashRunner, alone, answers, finish, make_engine, make_submit


def prompt(length: int, start: int = 0) -> list[int]:
    """Prompts with different `start` share no page."""
    return [(start + 7 * i * (start + 1)) % 32 for i in range(length)]


def steps_until(engine: Engine, request_id: str, most: int = 200) -> int:
    """Steps until the request's first token."""
    for step in range(1, most + 1):
        events = engine.step()
        engine.check()
        if any(isinstance(e, Tokens) and e.request_id == request_id for e in events):
            return step
    raise AssertionError(f"no token of {request_id} in {most} steps")


def lengths(runner: HashRunner) -> dict[str, int]:
    """Tokens of each request in the last batch."""
    return {chunk.sequence.request_id: chunk.length for chunk in runner.batches[-1].chunks}


def test_decodes_come_first_and_prefill_takes_what_is_left() -> None:
    engine, runner = make_engine(64, max_step_tokens=16)
    engine.submit(make_submit("decodes", prompt(3), max_tokens=9))
    engine.step()
    engine.submit(make_submit("long", prompt(100, 1)))
    engine.step()
    assert lengths(runner) == {"decodes": 1, "long": 15}


def test_a_short_prompt_overtakes_a_long_one_which_still_progresses() -> None:
    engine, runner = make_engine(128, max_step_tokens=16)
    engine.submit(make_submit("long", prompt(400)))
    engine.step()
    engine.submit(make_submit("short", prompt(20, 1)))
    steps = steps_until(engine, "short")
    assert steps <= 3
    assert all("long" in {c.sequence.request_id for c in batch.chunks} for batch in runner.batches)


@pytest.mark.parametrize("rate", [0.0, 2048.0, 1e12])
def test_aged_long_prompts_do_not_shut_a_short_one_out(rate: float) -> None:
    """More of them than may run side by side, and by their age all before it in the order."""
    engine, _ = make_engine(600, max_step_tokens=32, max_partial_prefills=2, ageing_tokens_per_second=rate)
    for start in range(4):
        engine.submit(make_submit(f"long{start}", prompt(400, start)))
        engine.step()
    engine.submit(make_submit("short", prompt(30, 5)))
    assert steps_until(engine, "short") <= 5


def test_a_stream_of_short_prompts_does_not_starve_a_long_one() -> None:
    engine, _ = make_engine(128, max_step_tokens=16, max_partial_prefills=2, ageing_tokens_per_second=1e6)
    engine.submit(make_submit("long", prompt(300)))
    for step in range(120):
        engine.submit(make_submit(f"short{step}", prompt(14, 1 + step % 30)))
        if any(isinstance(e, Tokens) and e.request_id == "long" for e in engine.step()):
            return
    raise AssertionError("the long prompt was starved")


def test_short_prompts_pass_one_that_waits_for_pages_but_not_for_ever() -> None:
    """The big one needs 12 of 16 pages; the small ones, always some of them running, could do without end."""
    engine, _ = make_engine(16, 4, max_step_tokens=8, ageing_tokens_per_second=1e9)
    engine.submit(make_submit("first", prompt(20), max_tokens=20))
    engine.step()
    engine.submit(make_submit("big", prompt(46, 1)))
    finished: list[str] = []
    for step in range(200):
        engine.submit(make_submit(f"small{step}", prompt(3, 2 + step % 28), max_tokens=18))
        events = engine.step()
        engine.check()
        finished += [e.request_id for e in events if isinstance(e, Tokens) and e.finish_reason]
        if "big" in finished:
            break
    before = finished[: finished.index("big")]
    assert "first" in before
    assert any(name.startswith("small") for name in before)


def test_prompts_that_end_in_this_step_are_not_partial() -> None:
    engine, runner = make_engine(64, max_step_tokens=64, max_partial_prefills=1)
    for start in range(6):
        engine.submit(make_submit(str(start), prompt(5, start)))
    engine.step()
    assert len(lengths(runner)) == 6


def test_equal_prompts_are_computed_once() -> None:
    """Sixteen samples of one prompt: the others wait for its pages and compute their last tokens only."""
    engine, runner = make_engine(128, 4, max_step_tokens=32, max_running=32)
    submits = [make_submit(str(n), prompt(90), max_tokens=3, priority=n % 2) for n in range(16)]
    for submit in submits:
        engine.submit(submit)
    events = finish(engine)
    prefilled = sum(chunk.length for batch in runner.batches for chunk in batch.chunks) - 16 * 2
    assert prefilled == 90 + 15 * 2
    assert answers(events) == {submit.request_id: alone(submit, 3) for submit in submits}


def test_equal_prompts_in_granules_are_computed_once() -> None:
    """But for what is no whole granule before the tail: the last 10 of 90 tokens."""
    engine, runner = make_engine(128, 4, max_step_tokens=40, max_running=32)
    submits = [make_submit(str(n), prompt(90), max_tokens=3, prefill="wide") for n in range(16)]
    for submit in submits:
        engine.submit(submit)
    events = finish(engine)
    prefilled = sum(chunk.length for batch in runner.batches for chunk in batch.chunks) - 16 * 2
    assert prefilled == 90 + 15 * 10
    assert answers(events) == {submit.request_id: alone(submit, 3) for submit in submits}


@pytest.mark.parametrize(
    ("prefill", "expected"),
    [
        pytest.param("local", [36, 36, 28], id="as many granules as fit"),
        pytest.param("cells", [8] * 12 + [4], id="one granule"),
        pytest.param("great cells", [32, 32, 32, 4], id="a granule above half of a step"),
    ],
)
def test_chunks_are_whole_granules(prefill: str, expected: list[int]) -> None:
    engine, runner = make_engine(64, max_step_tokens=39)
    engine.submit(make_submit("prompt", prompt(100), prefill=prefill))
    finish(engine)
    assert [batch.num_tokens for batch in runner.batches] == expected


def test_what_granules_leave_goes_to_other_prompts() -> None:
    engine, runner = make_engine(128, max_step_tokens=40)
    for start, prefill in enumerate(("great cells", "local", None)):
        engine.submit(make_submit(str(prefill), prompt(100 + start, start), prefill=prefill))
    engine.step()
    assert lengths(runner) == {"great cells": 32, "local": 4, "None": 4}


LONG, SHORT = st.integers(100, 250), st.integers(1, 60)
KIND = st.sampled_from([None, *PREFILL])


@settings(max_examples=40, deadline=None)
@given(longs=st.lists(st.tuples(LONG, KIND), min_size=1, max_size=3), short=st.tuples(SHORT, KIND),
       rate=st.sampled_from([0.0, 2048.0, 1e12]))  # fmt: skip
@example(longs=[(250, "great cells")], short=(30, "great cells"), rate=1e12)
def test_long_prompts_in_granules_do_not_shut_a_short_one_out(
    longs: list[tuple[int, str | None]], short: tuple[int, str | None], rate: float
) -> None:
    """A step holds one of the greatest granules, and four tokens more."""
    engine, _ = make_engine(600, max_step_tokens=36, max_running=4, ageing_tokens_per_second=rate)
    for start, (length, kind) in enumerate(longs):
        engine.submit(make_submit(f"long{start}", prompt(length, start), prefill=kind))
        engine.step()
    length, kind = short
    engine.submit(make_submit("short", prompt(length, 5), prefill=kind))
    own = 4 if kind is None else PREFILL[kind].granule
    assert steps_until(engine, "short") <= 2 * -(-length // own) + 1


def test_a_stream_of_short_prompts_does_not_starve_a_long_one_in_granules() -> None:
    engine, _ = make_engine(128, max_step_tokens=40, max_partial_prefills=2, ageing_tokens_per_second=1e6)
    engine.submit(make_submit("long", prompt(300), prefill="great cells"))
    for step in range(60):
        engine.submit(make_submit(f"short{step}", prompt(30, 1 + step % 30), prefill="local"))
        if any(isinstance(e, Tokens) and e.request_id == "long" for e in engine.step()):
            return
    raise AssertionError("the long prompt was starved")


def test_a_follower_lends_its_priority_to_the_one_that_computes_its_pages() -> None:
    engine, runner = make_engine(128, max_step_tokens=16)
    engine.submit(make_submit("leader", prompt(64), priority=5))
    engine.step()
    engine.submit(make_submit("other", prompt(200, 1), priority=1))
    engine.submit(make_submit("urgent", prompt(65), priority=0))
    engine.step()
    assert lengths(runner) == {"leader": 16}


def test_a_lower_priority_runs_on_what_the_higher_leaves() -> None:
    engine, runner = make_engine(128, max_step_tokens=16)
    engine.submit(make_submit("low", prompt(100), priority=1))
    engine.submit(make_submit("high", prompt(40, 1), priority=-1))
    for expected in ({"high": 16}, {"high": 16}, {"high": 8, "low": 8}):
        engine.step()
        assert lengths(runner) == expected


def test_a_higher_priority_takes_pages_from_a_lower_one() -> None:
    engine, _ = make_engine(12, 4, max_step_tokens=16)
    low = make_submit("low", prompt(30), max_tokens=10, priority=1)
    engine.submit(low)
    events = [event for _ in range(4) for event in engine.step()]
    engine.submit(make_submit("high", prompt(30, 1), max_tokens=2))
    events += finish(engine)
    ended = [e.request_id for e in events if isinstance(e, Tokens) and e.finish_reason]
    assert ended == ["high", "low"]
    assert engine.stats().preemptions_total > 0
    assert answers(events)["low"] == alone(low, 10)


def test_a_full_house_gives_way_to_a_higher_priority() -> None:
    engine, runner = make_engine(64, max_running=2)
    for name in ("low0", "low1"):
        engine.submit(make_submit(name, prompt(5, ord(name[-1]) % 7), max_tokens=20, priority=1))
    engine.step()
    engine.submit(make_submit("high", prompt(5, 9)))
    assert steps_until(engine, "high") == 1
    assert "low1" not in lengths(runner)
    finish(engine)


def test_short_of_pages_the_newest_is_preempted_and_nothing_is_lost() -> None:
    engine, _ = make_engine(12, 4, max_step_tokens=16)
    submits = [make_submit(str(n), prompt(10, n), max_tokens=30) for n in range(3)]
    for submit in submits:
        engine.submit(submit)
    events = finish(engine)
    ended = [e.request_id for e in events if isinstance(e, Tokens) and e.finish_reason]
    assert ended[0] == "0"
    assert engine.stats().preemptions_total > 0
    assert answers(events) == {submit.request_id: alone(submit, 30) for submit in submits}


def test_short_of_pages_a_lower_priority_gives_way_although_it_came_first() -> None:
    engine, _ = make_engine(12, 4, max_step_tokens=16)
    engine.submit(make_submit("low", prompt(10), max_tokens=30, priority=1))
    events = engine.step()
    engine.submit(make_submit("high", prompt(10, 1), max_tokens=30))
    events += finish(engine)
    ended = [e.request_id for e in events if isinstance(e, Tokens) and e.finish_reason]
    assert ended == ["high", "low"]
    assert engine.stats().preemptions_total > 0


def test_the_longest_prompt_fits() -> None:
    engine, _ = make_engine(8, 4)
    exact = make_submit("exact", prompt(31))
    engine.submit(exact)
    assert answers(finish(engine)) == {"exact": alone(exact, 1)}
    with pytest.raises(ContextTooLong):
        engine.submit(make_submit("long", prompt(32)))


def test_scored_rows_are_bounded_and_prompts_with_scores_are_never_reused() -> None:
    engine, runner = make_engine(800, 4, max_step_tokens=1024)
    engine.submit(make_submit("warm", prompt(700)))
    finish(engine)
    runner.batches.clear()
    for name in ("a", "b"):
        engine.submit(make_submit(name, prompt(700), prompt_logprobs=2))
    events = finish(engine)
    assert max(sum(c.prompt_logprob_rows for c in batch.chunks) for batch in runner.batches) <= SCORED_ROWS
    for name in ("a", "b"):
        event = next(e for e in events if isinstance(e, Tokens) and e.request_id == name)
        assert event.cached_tokens == 0
        assert len(event.prompt_logprobs) == 700


def test_scores_do_not_depend_on_the_chunks_or_on_preemption() -> None:
    scores = []
    for pages, step_tokens in ((64, 128), (16, 7)):
        engine, _ = make_engine(pages, 4, max_step_tokens=step_tokens, max_running=4)
        engine.submit(make_submit("scored", prompt(33), priority=1, prompt_logprobs=1))
        events = engine.step()
        for n in range(3):
            engine.submit(make_submit(f"high{n}", prompt(40, n + 1), max_tokens=9))
        events += finish(engine)
        scores.append(next(e for e in events if e.request_id == "scored").prompt_logprobs)
        preempted = engine.stats().preemptions_total
    assert preempted > 0
    assert scores[0] == scores[1]
    assert len(scores[0]) == 33


def test_the_queue_refuses_too_many_requests() -> None:
    engine, _ = make_engine(max_queued_requests=2)
    for n in range(2):
        engine.submit(make_submit(str(n), prompt(9, n)))
    with pytest.raises(QueueFull, match="2 requests are waiting") as refusal:
        engine.submit(make_submit("third", prompt(9)))
    assert refusal.value.retry_after >= 1
    engine.step()
    engine.submit(make_submit("third", prompt(9)))


def test_the_queue_refuses_too_many_tokens_but_never_a_lone_prompt() -> None:
    engine, _ = make_engine(max_queued_tokens=20)
    engine.submit(make_submit("alone", prompt(40)))
    with pytest.raises(QueueFull, match="40 prompt tokens are waiting"):
        engine.submit(make_submit("second", prompt(2)))


def test_an_id_in_use_is_refused() -> None:
    engine, _ = make_engine()
    engine.submit(make_submit("same", prompt(9)))
    with pytest.raises(RequestError, match="this id"):
        engine.submit(make_submit("same", prompt(9)))


def test_an_aborted_prefill_stops_at_once_and_a_retry_continues_where_it_was() -> None:
    engine, _ = make_engine(64, max_step_tokens=16)
    engine.submit(make_submit("first", prompt(100), progress=True))
    assert engine.step() == [Progress("first", 16, 100, 0)]
    engine.step()
    engine.abort("first")
    assert not engine.busy
    assert engine.stats().pages_used == 0
    retry = make_submit("retry", prompt(100), progress=True)
    engine.submit(retry)
    events = finish(engine)
    assert events[0] == Progress("retry", 48, 100, 32)
    assert answers(events)["retry"] == alone(retry, 1)


def test_many_waiting_long_prompts_cost_little_to_order() -> None:
    engine, _ = make_engine(4096, 16, max_step_tokens=64, max_running=4)
    for n in range(200):
        engine.submit(make_submit(str(n), prompt(4000, n)))
    began = time.process_time()
    for _ in range(5):
        engine._scheduler.schedule()
    assert (time.process_time() - began) / 5 < 0.1
