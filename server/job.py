"""A validated request: prompts times n sequences, run side by side."""

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from headway.engine.config import SchedulerConfig
from headway.engine.errors import RequestError, renamed
from headway.engine.messages import SamplingParams, Submit
from headway.engine.request import check
from headway.server.generation import GenerationEvent, generate
from headway.server.headway_options import Wishes
from headway.server.merge import merge
from headway.server.sampling import TextOptions
from headway.server.schema import SamplingFields
from headway.server.service import Service


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks of the engine. Sequence i belongs to prompt i // n."""

    id: str
    created: int
    prompts: list[list[int]]
    n: int
    sampling: SamplingParams
    text: TextOptions
    wishes: Wishes
    priority: int
    cache_salt: str
    progress: bool
    fields: Mapping[str, str]

    @classmethod
    def build(
        cls,
        kind: str,
        body: SamplingFields,
        prompts: list[list[int]],
        sampling: SamplingParams,
        text: TextOptions,
        wishes: Wishes,
        fields: Mapping[str, str] | None = None,
    ) -> "Job":
        """A job with a fresh id that begins with `kind`.

        `fields`: what the request calls the engine's fields, where it does so otherwise.
        """
        options = body.stream_options
        return cls(
            id=f"{kind}-{uuid.uuid4().hex}",
            created=int(time.time()),
            prompts=prompts,
            n=body.n or 1,
            sampling=sampling,
            text=text,
            wishes=wishes,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            progress=bool(body.stream and options and options.include_progress),
            fields=fields or {},
        )

    def _sampling(self, choice: int) -> SamplingParams:
        # One seed for all choices would make them equal.
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=seed + choice)

    def _check_queue(self, queue: SchedulerConfig) -> None:
        """Refuse what could never be queued together."""
        answers = len(self.prompts) * self.n
        tokens = sum(map(len, self.prompts)) * self.n
        for what, wanted, most in (
            ("prompts", answers, queue.max_queued_requests),
            ("prompt tokens", tokens, queue.max_queued_tokens),
        ):
            if answers > 1 and wanted > most:
                raise RequestError(
                    f"{what} times n may be {most} at most, which is what the queue holds, not {wanted}",
                    "prompt" if len(self.prompts) > 1 else "n",
                )

    def run(self, service: Service) -> AsyncGenerator[tuple[int, GenerationEvent], None]:
        """Submit every sequence and yield (its index, event).

        Raises:
            RequestError: a prompt or a parameter does not fit the model, or all answers together do not fit
                the queue; nothing has been submitted then.
        """
        submits = [
            Submit(
                request_id=f"{self.id}-{index}",
                prompt=self.prompts[index // self.n],
                sampling=self._sampling(index % self.n),
                priority=self.priority,
                cache_salt=self.cache_salt,
                progress=self.progress,
                decode=self.wishes.decode.choice,
                prefill=self.wishes.prefill.choice,
            )
            for index in range(len(self.prompts) * self.n)
        ]
        for submit in submits[:: self.n]:
            try:
                check(submit, service.engine.info)
            except RequestError as error:
                raise renamed(error, self.fields) from error
        self._check_queue(service.settings.engine.scheduler)
        return merge(
            [
                generate(service.engine, submit, service.tokenizer, self.text, service.metrics)
                for submit in submits
            ]
        )
