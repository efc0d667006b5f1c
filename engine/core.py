"""Engine: schedule → run → sample → commit."""

import math
import time
from collections.abc import Callable

from msgspec.structs import replace

from headway.engine.batch import Batch
from headway.engine.config import SchedulerConfig
from headway.engine.errors import HeadwayError, QueueFull, RequestError, RequestFailed
from headway.engine.failures import to_event
from headway.engine.layer_routing import LayerRouting
from headway.engine.messages import ModelInfo, Progress, RequestEvent, SelectionUsage, Stats, Submit, Tokens
from headway.engine.outcome import Outcome, Runner, run, sample
from headway.engine.prefix_cache import PrefixCache
from headway.engine.recipes import Recipes
from headway.engine.request import Sequence
from headway.engine.sampler import Sample, Sampler
from headway.engine.scheduler import Scheduler

LONGEST_RETRY_SECONDS = 600


class Engine:
    """Serves requests one step at a time; not thread-safe, knows no clients.

    A model run or a sampler call that raises is repeated for each sequence alone: those that raise again
    fail, all others go on as if nothing had happened.

    Args:
        info: the model's limits, against which requests are checked.
        config: the scheduler's and the queue's limits.
        cache: all pages, unused.
        runner, sampler: what computes logits and tokens.
        recipes: what methods are served; None: dense only.
        routing: what chooses the layers of each request that read everything; None: nothing.
        clock: seconds; prompts age by it.
    """

    def __init__(
        self,
        info: ModelInfo,
        config: SchedulerConfig,
        cache: PrefixCache,
        runner: Runner,
        sampler: Sampler,
        recipes: Recipes | None = None,
        routing: LayerRouting | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self._config = config
        self._cache = cache
        self._runner = runner
        self._sampler = sampler
        self._recipes = recipes
        self._routing = routing
        self._clock = clock
        self._scheduler = Scheduler(config, cache)
        self._sequences: dict[str, Sequence] = {}
        self._tokens_per_second = float(config.max_step_tokens)
        self._steps = self._prompt_tokens = self._cached_tokens = self._generated_tokens = self._failures = 0
        self._last_step_seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._sequences)

    def submit(self, submit: Submit) -> None:
        """Queue a request.

        Raises:
            RequestError: a field is out of bounds, or the id is in use.
            QueueFull: too many requests or tokens wait already.
            RequestFailed: the model failed on the request's preview.
            EngineDead: the accelerator is lost.
        """
        if submit.request_id in self._sequences:
            raise RequestError("a request with this id is running", "request_id")
        decode, prefill = (None, None) if self._recipes is None else self._recipes.methods(submit)
        sequence = Sequence.from_submit(submit, self.info, decode, prefill, self._clock())
        self._cache.refuse(sequence)
        self._refuse_if_full(sequence)
        if self._routing is not None:
            self._routing.route(sequence)
        self._scheduler.add(sequence)
        self._sequences[submit.request_id] = sequence

    def abort(self, request_id: str) -> Tokens | None:
        """Drop a request; its finished pages stay cached. Returns its last event; None: the id is unknown."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        sequence.finish_reason = "abort"
        return self._last(sequence, Tokens(request_id=request_id, token_ids=[]))

    def step(self) -> list[RequestEvent]:
        """Run one batch; returns what became of its requests.

        Raises:
            EngineDead: the accelerator is lost.
        """
        began = self._clock()
        batch = self._scheduler.schedule()
        logits = run(self._runner, batch)
        outcomes = sample(self._sampler, batch, logits)
        events = self._commit(batch, outcomes)
        self._measure(batch, self._clock() - began)
        return events

    def stats(self) -> Stats:
        """Counters since start and gauges of this moment."""
        waiting, streaming = self._scheduler.waiting, self._cache.streaming_pool
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(waiting),
            waiting_tokens=sum(len(sequence.tokens) for sequence in waiting),
            pages_total=self._cache.num_pages,
            pages_free=self._cache.free,
            pages_cached=self._cache.idle,
            pages_used=self._cache.used,
            streaming_pages_total=streaming.num_pages,
            streaming_pages_free=streaming.free,
            streaming_pages_cached=streaming.idle,
            streaming_pages_used=streaming.used,
            steps_total=self._steps,
            prompt_tokens_total=self._prompt_tokens,
            cached_tokens_total=self._cached_tokens,
            generated_tokens_total=self._generated_tokens,
            preemptions_total=self._scheduler.preemptions,
            failures_total=self._failures,
            last_step_seconds=self._last_step_seconds,
        )

    def check(self) -> None:
        """Prove that no page is lost or counted wrongly.

        Raises:
            RuntimeError: what is wrong.
        """
        self._cache.check(self._sequences.values())

    def close(self) -> None:
        """Give the model back as it was."""
        self._runner.close()

    def _refuse_if_full(self, sequence: Sequence) -> None:
        waiting = self._scheduler.waiting
        tokens = sum(len(other.tokens) for other in waiting)
        seconds = math.ceil((tokens + sequence.num_prompt) / self._tokens_per_second)
        retry_after = min(max(seconds, 1), LONGEST_RETRY_SECONDS)
        if len(waiting) >= self._config.max_queued_requests:
            raise QueueFull(f"{self._config.max_queued_requests} requests are waiting already", retry_after)
        if waiting and tokens + sequence.num_prompt > self._config.max_queued_tokens:
            raise QueueFull(
                f"{tokens} prompt tokens are waiting; this request would exceed the limit of "
                f"{self._config.max_queued_tokens}",
                retry_after,
            )

    def _commit(self, batch: Batch, outcomes: list[Outcome | RequestFailed]) -> list[RequestEvent]:
        events: list[RequestEvent] = []
        for chunk, outcome in zip(batch.chunks, outcomes, strict=True):
            sequence = chunk.sequence
            if isinstance(outcome, RequestFailed):
                events.append(self._fail(sequence, outcome))
                continue
            sequence.computed = chunk.end
            self._cache.advance(sequence)
            if outcome.scores:
                del sequence.prompt_logprobs[chunk.start + 1 :]
                sequence.prompt_logprobs += outcome.scores
            if sequence.submit.progress and not sequence.num_generated:
                events.append(Progress(sequence.request_id, chunk.end, sequence.num_prompt, sequence.cached))
            if outcome.sample is not None:
                events.append(self._append(sequence, outcome.sample))
        return events

    def _append(self, sequence: Sequence, drawn: Sample) -> Tokens:
        first = not sequence.num_generated
        sequence.tokens.append(drawn.token)
        self._generated_tokens += 1
        if first:
            self._prompt_tokens += sequence.num_prompt
            self._cached_tokens += sequence.cached
        params = sequence.submit.sampling
        stops = drawn.token in params.stop_token_ids or (
            drawn.token in self.info.eos_token_ids and not params.ignore_eos
        )
        if stops:
            sequence.finish_reason = "stop"
        elif sequence.num_generated == sequence.max_tokens:
            sequence.finish_reason = "length"
        scored = first and params.prompt_logprobs is not None
        event = Tokens(
            request_id=sequence.request_id,
            token_ids=[drawn.token],
            logprobs=None if drawn.logprob is None else [drawn.logprob],
            prompt_logprobs=sequence.prompt_logprobs if scored else None,
            cached_tokens=sequence.cached if first else 0,
            stop_token=drawn.token if stops else None,
        )
        return event if sequence.finish_reason is None else self._last(sequence, event)

    def _last(self, sequence: Sequence, event: Tokens) -> Tokens:
        """The event as that of a request that ends with it."""
        return replace(
            event,
            finish_reason=sequence.finish_reason,
            selection=self._end(sequence),
            prefill=sequence.prefill_usage(),
            full_layers=sequence.full_layers,
        )

    def _fail(self, sequence: Sequence, error: HeadwayError) -> RequestEvent:
        self._failures += 1
        self._end(sequence)
        return to_event(sequence.request_id, error)

    def _end(self, sequence: Sequence) -> SelectionUsage | None:
        del self._sequences[sequence.request_id]
        self._scheduler.remove(sequence)
        self._sampler.release(sequence)
        return self._runner.release(sequence)

    def _measure(self, batch: Batch, seconds: float) -> None:
        self._steps += 1
        self._last_step_seconds = seconds
        if batch.num_tokens > len(batch.chunks):  # steps of decodes only say nothing of prefill
            speed = batch.num_tokens / max(seconds, 1e-6)
            self._tokens_per_second += 0.1 * (speed - self._tokens_per_second)
