"""ScriptedEngine: a deterministic stand-in for the engine, so that the HTTP side is tested alone."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from headway.engine.messages import (
    Logprob,
    ModelInfo,
    PrefillUsage,
    Progress,
    RequestEvent,
    SelectionUsage,
    Stats,
    Submit,
    Tokens,
)
from headway.server.tokenizer import Tokenizer

EOS = 1


@dataclass
class ScriptedEngine:
    """Answers each request with the tokens of `answer`, then EOS; keeps what it was asked.

    Request i ends with `selections[i]`, `prefills[i]` and `full_layers[i]`, where there are such.
    """

    tokenizer: Tokenizer
    answer: str = "The secret code is 7301942."
    pause: float = 0.0
    prefill: float = 0.0
    cached: int = 0
    error: Exception | None = None
    fail_after: int | None = None
    selections: list[SelectionUsage] = field(default_factory=list)
    prefills: list[PrefillUsage] = field(default_factory=list)
    full_layers: list[tuple[int, ...]] = field(default_factory=list)
    alive: bool = True
    submits: list[Submit] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: int = 0

    def __post_init__(self) -> None:
        self.info = ModelInfo(
            name="needle",
            max_context=4096,
            vocab_size=self.tokenizer.backend.get_vocab_size(),
            eos_token_ids=(EOS,),
            dtype="float32",
            device="cpu",
            num_pages=64,
            page_size=64,
            plan="64 pages",
        )

    async def generate(self, submit: Submit) -> AsyncGenerator[RequestEvent, None]:
        selection = dict(enumerate(self.selections)).get(len(self.submits))
        prefill = dict(enumerate(self.prefills)).get(len(self.submits))
        full_layers = dict(enumerate(self.full_layers)).get(len(self.submits))
        self.submits.append(submit)
        self.running += 1
        finished = False
        try:
            if self.error is not None and self.fail_after is None:
                raise self.error
            await asyncio.sleep(self.prefill)
            total = len(submit.prompt)
            for done in (total // 2, total) if submit.progress else ():
                yield Progress(submit.request_id, done, total, self.cached)
            tokens = [*self.tokenizer.encode(self.answer, add_special_tokens=False), EOS]
            limit = submit.sampling.max_tokens
            for count, token in enumerate(tokens[:limit], start=1):
                await asyncio.sleep(self.pause)
                if submit.request_id in self.aborted:
                    finished = True
                    yield Tokens(
                        request_id=submit.request_id,
                        token_ids=[],
                        finish_reason="abort",
                        selection=selection,
                        prefill=prefill,
                        full_layers=full_layers,
                    )
                    return
                if count - 1 == self.fail_after:
                    assert self.error is not None
                    raise self.error
                ends = token == EOS or count == limit
                finished = ends
                yield Tokens(
                    request_id=submit.request_id,
                    token_ids=[token],
                    logprobs=[_logprob(token)] if submit.sampling.logprobs is not None else None,
                    prompt_logprobs=_prompt_logprobs(submit) if count == 1 else None,
                    cached_tokens=self.cached if count == 1 else 0,
                    finish_reason=("stop" if token == EOS else "length") if ends else None,
                    stop_token=token if token == EOS else None,
                    selection=selection if ends else None,
                    prefill=prefill if ends else None,
                    full_layers=full_layers if ends else None,
                )
                if ends:
                    return
        finally:
            self.running -= 1
            if not finished:
                self.aborted.append(submit.request_id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> Stats:
        streaming = {"streaming_pages_free": 3, "streaming_pages_cached": 2, "streaming_pages_used": 1}
        return Stats(
            running=self.running, pages_total=64, pages_used=16, prompt_tokens_total=100, **streaming
        )

    def is_alive(self) -> bool:
        return self.alive

    async def close(self) -> None:
        self.alive = False


def _logprob(token: int) -> Logprob:
    return Logprob(-0.5, [(token, -0.5), (token + 1, float("-inf"))])


def _prompt_logprobs(submit: Submit) -> list[Logprob | None] | None:
    if submit.sampling.prompt_logprobs is None:
        return None
    return [None, *(_logprob(token) for token in submit.prompt[1:])]
