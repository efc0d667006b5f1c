"""A job's answer: one JSON object, or a stream of chunks."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request, Response

from headway.engine.messages import Progress
from headway.server.choices import Choice, Json
from headway.server.generation import GenerationEvent, Started
from headway.server.job import Job
from headway.server.schema import SamplingFields, StreamOptions
from headway.server.service import Service
from headway.server.stream import DONE, EventStream, frame, unless_left
from headway.server.usage import Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """What turns a job's events into OpenAI's objects.

    Attributes:
        kind: value of `object` in the whole answer.
        chunk_kind: value of `object` in a stream's chunks.
        choices: one for each sequence of the job.
    """

    service: Service
    job: Job
    kind: str
    chunk_kind: str
    choices: Sequence[Choice]

    async def respond(self, request: Request, body: SamplingFields) -> Response:
        """The HTTP answer.

        Raises:
            HeadwayError: before the answer has begun.
            ClientLeft: the client closed the connection.
        """
        if body.stream:
            chunks = self.chunks(body.stream_options or StreamOptions())
            seconds = self.service.settings.server.keep_alive_seconds
            return await EventStream(chunks, seconds).begin(request.receive)
        whole = await unless_left(request.receive, self.whole())
        return Response(msgspec.json.encode(whole), media_type="application/json")

    async def whole(self) -> Json:
        """All choices, once all are finished."""
        usage = self._usage()
        deltas: list[list[Json]] = [[] for _ in self.choices]
        async with aclosing(self.job.run(self.service)) as events:
            async for index, event in events:
                delta = await self._take(index, event, usage)
                if delta is not None:
                    deltas[index].append(delta)
        choices = [choice.whole(its) for choice, its in zip(self.choices, deltas, strict=True)]
        return {**self._head(self.kind), "choices": choices, "usage": usage.report()}

    async def chunks(self, options: StreamOptions) -> AsyncGenerator[bytes, None]:
        """One event for each token, and for each step of a prefill if `include_progress` asks for it.

        Progress is a chunk without choices rather than an SSE comment: clients that read comments are rare,
        and those which ask for usage must expect such chunks anyway.
        """
        usage = self._usage()
        head = self._head(self.chunk_kind)
        async with aclosing(self.job.run(self.service)) as events:
            async for index, event in events:
                if isinstance(event, Progress):
                    prefill = {
                        "index": index,
                        "done": event.done,
                        "total": event.total,
                        "cached": event.cached,
                    }
                    yield frame({**head, "choices": [], "headway": {"prefill": prefill}})
                    continue
                delta = await self._take(index, event, usage)
                if delta is None:
                    continue
                chunk = {**head, "choices": [delta]}
                if options.continuous_usage_stats:
                    chunk["usage"] = usage.report()
                elif options.include_usage:
                    chunk["usage"] = None
                yield frame(chunk)
        if options.include_usage:
            yield frame({**head, "choices": [], "usage": usage.report()})
        yield DONE

    async def _take(self, index: int, event: GenerationEvent, usage: Usage) -> Json | None:
        if isinstance(event, Progress):
            return None
        usage.count(index, event)
        if not isinstance(event, Started):
            return self.choices[index].delta(event)
        if event.prompt_logprobs is not None:
            await asyncio.to_thread(self.choices[index].start, event)
        return None

    def _usage(self) -> Usage:
        return Usage([len(prompt) for prompt in self.job.prompts], self.job.n, self.job.wishes)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.job.id, "object": kind, "created": self.job.created, "model": self.service.model}
