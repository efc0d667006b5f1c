"""A validated request: prompts times n sequences, run side by side."""

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from msgspec.structs import replace

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

    @classmethod
    def build(
        cls,
        kind: str,
        body: SamplingFields,
        prompts: list[list[int]],
        sampling: SamplingParams,
        text: TextOptions,
        wishes: Wishes,
    ) -> "Job":
        """A job with a fresh id that begins with `kind`."""
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
        )

    def _sampling(self, choice: int) -> SamplingParams:
        # One seed for all choices would make them equal.
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=seed + choice)

    def run(self, service: Service) -> AsyncGenerator[tuple[int, GenerationEvent], None]:
        """Submit every sequence and yield (its index, event).

        Raises:
            RequestError: a prompt or a parameter does not fit the model; nothing has been submitted then.
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
            check(submit, service.engine.info)
        return merge(
            [
                generate(service.engine, submit, service.tokenizer, self.text, service.metrics)
                for submit in submits
            ]
        )
