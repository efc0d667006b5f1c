"""Whatever is submitted, aborted and preempted: no page is lost and every answer is the one given alone."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from headway.engine import streaming_pages
from headway.engine.messages import Submit, Tokens

from .hash_runner import EOS, VOCAB, alone, finish, make_engine, make_submit

REUSE_TOKENS = streaming_pages.REUSE_TOKENS
PAGE = 4
PAGES = 12
STEP_TOKENS = 12
DOCUMENTS = [[(3 + 5 * i * (d + 1)) % VOCAB for i in range(28)] for d in range(2)]
CUTS = [0, 1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE - 1, 5 * PAGE, 5 * PAGE + 1, 7 * PAGE]


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], dict[str, object]]:
    """Prompts that share prefixes up to, before and behind page borders, some within one tenant only."""
    document = draw(st.sampled_from(DOCUMENTS))
    suffix = draw(st.lists(st.integers(0, VOCAB - 1), max_size=3))
    prompt = document[: draw(st.sampled_from(CUTS))] + suffix or [2]
    return prompt, {
        "max_tokens": draw(st.integers(1, 14)),
        "salt": draw(st.sampled_from(["", "", "tenant"])),
        "priority": draw(st.integers(0, 1)),
        "ignore_eos": draw(st.booleans()),
        "prompt_logprobs": draw(st.sampled_from([None, None, None, 1])),
        "progress": draw(st.booleans()),
        "prefill": draw(st.sampled_from([None, None, "local", "wide", "cells"])),
    }


class EngineMachine(RuleBasedStateMachine):
    """Requests against an engine whose pages hold one long context or a few short ones."""

    prefix_cache = True
    streaming_pages = 0
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.engine, self.runner = make_engine(
            PAGES, PAGE, self.prefix_cache, self.streaming_pages,
            max_step_tokens=STEP_TOKENS, max_running=4, max_partial_prefills=2,
        )  # fmt: skip
        self.submits: dict[str, Submit] = {}
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}

    @rule(target=running, request=requests())
    def submit(self, request: tuple[list[int], dict[str, object]]) -> str:
        prompt, options = request
        name = str(len(self.submits))
        self.submits[name] = make_submit(name, prompt, **options)
        self.engine.submit(self.submits[name])
        return name

    @rule(name=consumes(running))
    def abort(self, name: str) -> None:
        self.engine.abort(name)
        self.submits[name] = self.submits[name] if name in self.reasons else None

    @precondition(lambda self: self.engine.busy)
    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.engine.busy:
                self.take(self.engine.step())
                self.engine.check()
                batch = self.runner.batches[-1]
                assert 0 < batch.num_tokens <= STEP_TOKENS
                assert all(chunk.length > 0 for chunk in batch.chunks)
                self.runner.batches.clear()

    @invariant()
    def pages_are_conserved(self) -> None:
        self.engine.check()

    @invariant()
    def pages_of_heads_that_stream_are_counted(self) -> None:
        stats, void = self.engine.stats(), self.streaming_pages
        held = {page for sequence in self.engine._sequences.values() for page in sequence.streaming_pages}
        assert stats.streaming_pages_total == self.streaming_pages
        assert stats.streaming_pages_used == len(held - {void})
        assert stats.streaming_pages_free + stats.streaming_pages_cached == void - len(held - {void})

    @invariant()
    def the_most_important_are_preempted_last(self) -> None:
        running = self.engine._scheduler.running
        assert running == sorted(running, key=lambda s: (s.submit.priority, s.arrival))

    def teardown(self) -> None:
        self.take(finish(self.engine))
        assert self.engine.stats().pages_used == 0
        for name, submit in self.submits.items():
            if submit is None:
                assert name not in self.reasons
                continue
            expected = alone(submit, submit.sampling.max_tokens)
            assert self.tokens[name] == expected
            stopped = expected[-1] == EOS and not submit.sampling.ignore_eos
            assert self.reasons[name] == ("stop" if stopped else "length")

    def take(self, events: list[object]) -> None:
        for event in events:
            if not isinstance(event, Tokens):
                continue
            submit = self.submits[event.request_id]
            assert submit is not None
            assert event.request_id not in self.reasons
            if event.request_id not in self.tokens and submit.sampling.prompt_logprobs is not None:
                assert [score is None for score in event.prompt_logprobs] == [
                    position == 0 for position in range(len(submit.prompt))
                ]
            self.tokens.setdefault(event.request_id, []).extend(event.token_ids)
            if event.finish_reason:
                self.reasons[event.request_id] = event.finish_reason


class UncachedEngineMachine(EngineMachine):
    """The same without a prefix cache."""

    prefix_cache = False


class StreamingEngineMachine(EngineMachine):
    """Some heads stream and keep sinks and window only, in pages for one long prompt or a few short ones."""

    streaming_pages = 13

    def __init__(self) -> None:
        super().__init__()
        streaming_pages.REUSE_TOKENS = 2  # prompts are short: or else nothing would be given up

    def teardown(self) -> None:
        super().teardown()
        streaming_pages.REUSE_TOKENS = REUSE_TOKENS


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStreamingEngine = StreamingEngineMachine.TestCase
TestStreamingEngine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestUncachedEngine = UncachedEngineMachine.TestCase
TestUncachedEngine.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
