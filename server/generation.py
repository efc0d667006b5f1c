"""One sequence: from the engine's tokens to pieces of text."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal

from headway.engine.client import EngineClient
from headway.engine.errors import HeadwayError, RequestFailed
from headway.engine.messages import (
    Logprob,
    PrefillUsage,
    Progress,
    RequestEvent,
    SelectionUsage,
    Submit,
    Tokens,
)
from headway.server.answer_text import AnswerText
from headway.server.metrics import Metrics, RequestTimer
from headway.server.sampling import TextOptions
from headway.server.tokenizer import Tokenizer

Reason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt is done.

    Attributes:
        cached_tokens: prompt tokens found in the prefix cache.
        prompt_logprobs: one entry a prompt token, the first None; None if not asked for.
    """

    cached_tokens: int
    prompt_logprobs: list[Logprob | None] | None


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token and the text that it made certain (possibly none).

    Attributes:
        offset: characters of the answer before this token.
        finish_reason: set on the last piece.
        selection, prefill: what selecting did for the whole answer and for its prompt; on the last piece.
        full_layers: those that a router let read everything; on the same piece.
    """

    token: int
    text: str
    offset: int
    logprob: Logprob | None
    finish_reason: Reason | None
    selection: SelectionUsage | None = None
    prefill: PrefillUsage | None = None
    full_layers: tuple[int, ...] | None = None


GenerationEvent = Progress | Started | Piece
Counts = tuple[SelectionUsage | None, PrefillUsage | None, tuple[int, ...] | None]


async def generate(
    engine: EngineClient, submit: Submit, tokenizer: Tokenizer, options: TextOptions, metrics: Metrics
) -> AsyncGenerator[GenerationEvent, None]:
    """Run one request; a stop string that matches, or closing this generator, ends it in the engine too.

    Raises:
        RequestError, QueueFull, RequestFailed, EngineDead: from the engine.
    """
    text = AnswerText(tokenizer, submit.prompt, options)
    started = False
    with RequestTimer(metrics) as timer:
        async with aclosing(engine.generate(submit)) as events:
            async for event in events:
                if isinstance(event, Progress):
                    yield event
                    continue
                if not isinstance(event, Tokens):
                    raise RequestFailed("the engine reported a failure")
                if event.finish_reason == "abort":
                    raise RequestFailed("the engine stopped this request")
                if not started:
                    started = True
                    yield Started(event.cached_tokens, event.prompt_logprobs)
                for index, token in enumerate(event.token_ids):
                    timer.token()
                    last = index == len(event.token_ids) - 1
                    reason: Reason | None = event.finish_reason if last else None
                    offset = text.length
                    is_stop = last and event.stop_token is not None
                    new = text.push(token, last=reason is not None, is_stop=is_stop)
                    if text.stopped:
                        reason = "stop"
                    timer.reason = reason
                    logprob = event.logprobs[index] if event.logprobs else None
                    counts = await _counts(event, events, engine, metrics) if reason else ()
                    yield Piece(token, new, offset, logprob, reason, *counts)
                    if reason:
                        return
    raise RequestFailed("the engine ended this request without a reason")


async def _counts(
    event: Tokens, events: AsyncGenerator[RequestEvent, None], engine: EngineClient, metrics: Metrics
) -> Counts:
    """Those of a request that ends with `event`, or that a stop string ends where the engine would go on."""
    if event.finish_reason is None:
        with suppress(HeadwayError):  # the text is whole, whatever becomes of the counts
            engine.abort(event.request_id)
            async for later in events:
                if isinstance(later, Tokens):
                    event = later
    if event.selection is not None:
        metrics.selected(event.selection)
    if event.prefill is not None:
        metrics.prefilled(event.prefill)
    return event.selection, event.prefill, event.full_layers
