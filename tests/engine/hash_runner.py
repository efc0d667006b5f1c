"""A model double whose logits depend on every token, position and page, so that any mix-up changes them."""

import hashlib
import itertools
from typing import Any

import numpy as np
import torch

from headway.engine.batch import Batch
from headway.engine.config import SchedulerConfig
from headway.engine.core import Engine
from headway.engine.messages import Failed, ModelInfo, Progress, RequestEvent, SamplingParams, Submit, Tokens
from headway.engine.methods.decode import dense
from headway.engine.methods.prefill import streaming
from headway.engine.pages import PageAllocator
from headway.engine.prefix_cache import PrefixCache, prefill_identity, root_digest
from headway.engine.request import Sequence
from headway.engine.sampler import Sampler
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.streaming_pages import StreamingPages

VOCAB = 32
EOS = 1
POISON = np.uint64(0xDEADBEEF)
_TOKEN_WEIGHTS = np.random.default_rng(0).integers(0, 2**63, VOCAB, dtype=np.uint64)


class Cells(streaming.Method):
    """Chooses by the last queries of each chunk, as far as the scheduler can tell."""

    row_local = False


SELECTING: dict[str, dict[str, Any]] = {"dense_below": 4, "dense_tail": 3}
PREFILL = {
    "local": streaming.Method(streaming.Settings(tile=4, sink_size=0, **SELECTING)),
    "wide": streaming.Method(streaming.Settings(tile=8, sink_size=0, **SELECTING)),
    "cells": Cells(streaming.Settings(tile=8, sink_size=1, **SELECTING)),
    "great cells": Cells(streaming.Settings(tile=32, sink_size=1, **SELECTING)),
}
"""What `make_submit(prefill=…)` chooses from; a granule is a tile, whole pages of 4."""


DECODE = dense.Method(dense.Settings(dense_below=10))
"""What serves decode steps where heads stream, `SINKS` and `WINDOW` tokens."""
SINKS, WINDOW = 3, 6


class Choice:
    """In the place of Recipes: each request names one of PREFILL, or none."""

    def __init__(self, decode: dense.Method | None = None) -> None:
        self.decode = decode

    def methods(self, submit: Submit) -> tuple[dense.Method | None, streaming.Method | None]:
        return self.decode, None if submit.prefill is None else PREFILL[submit.prefill["method"]]


class PageMixup(BaseException):
    """Not an Exception: the engine would take it for a fault of one request and try again."""


class GranuleCut(BaseException):
    """No Exception either."""


class HashRunner:
    """Keeps one number for each token in its page's slot, made from the token, its position, its tenant and
    all numbers before it, which it reads back through the block table as attention does; and of a prompt that
    a method selects for, from all that the method may choose by. With pages for heads that stream, these hold
    the same numbers, of which it reads back what such heads read."""

    def __init__(self, num_pages: int, page_size: int, streaming_pages: int = 0) -> None:
        self.slots = np.full((num_pages, page_size), POISON)
        self.streaming = np.full((streaming_pages, page_size), POISON)
        self.batches: list[Batch] = []
        self.fails_on: set[int] = set()

    def run(self, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        self._refuse_writes_to_shared_pages(batch)
        _refuse_cut_granules(batch)
        rows = []
        for chunk in batch.chunks:
            sequence = chunk.sequence
            if self.fails_on & set(sequence.tokens[chunk.start : chunk.end]):
                raise ValueError("an injected fault")
            pages, size = np.array(sequence.pages), self.slots.shape[1]
            for position in range(chunk.start, chunk.end):
                index = np.arange(position)
                past = self.slots[pages[index // size], index % size]
                number = _number(sequence, position, past)
                self.slots[pages[position // size], position % size] = number
                rows.append(number)
                if len(self.streaming):
                    self._stream(sequence, position, np.append(past, number))
        logits = [_logits(rows[row]) for row in batch.logit_rows()]
        return torch.stack(logits) if logits else torch.empty(0, VOCAB)

    def _stream(self, sequence: Sequence, position: int, numbers: np.ndarray) -> None:
        pages, size = np.array(sequence.streaming_pages), self.slots.shape[1]
        if pages[position // size] == len(self.streaming):
            raise PageMixup("a token of heads that stream has no page")
        self.streaming[pages[position // size], position % size] = numbers[-1]
        index = np.arange(position + 1)
        if position >= sequence.streams_from:
            tile = 1 if position >= sequence.num_prompt else sequence.prefill.settings.tile
            index = index[(index < SINKS) | (index >= position // tile * tile - WINDOW + (tile == 1))]
        if (pages[index // size] == len(self.streaming)).any():
            raise PageMixup("a page of heads that stream was dropped too early")
        if (self.streaming[pages[index // size], index % size] != numbers[index]).any():
            raise PageMixup("heads that stream do not find what was written")

    def release(self, sequence: Sequence) -> None:
        pass

    def close(self) -> None:
        pass

    def _refuse_writes_to_shared_pages(self, batch: Batch) -> None:
        size = self.slots.shape[1]
        for chunk in batch.chunks:
            written = set(chunk.sequence.pages[chunk.start // size : (chunk.end - 1) // size + 1])
            for other in batch.chunks:
                if other is not chunk and written & set(other.sequence.pages):
                    raise PageMixup("a page is written that another sequence holds")


def alone(submit: Submit, max_tokens: int) -> list[int]:
    """The tokens that a request gets from the double without pages, batches or caches."""
    sequence = Sequence.from_submit(submit, _info(num_pages=10_000, page_size=4), *Choice().methods(submit))
    numbers: list[np.uint64] = []
    while sequence.num_generated < max_tokens:
        for position in range(len(numbers), len(sequence.tokens)):
            numbers.append(_number(sequence, position, np.array(numbers, dtype=np.uint64)))
        sequence.tokens.append(int(_logits(numbers[-1]).argmax()))
        if sequence.tokens[-1] == EOS and not submit.sampling.ignore_eos:
            break
    return sequence.tokens[sequence.num_prompt :]


def make_engine(
    num_pages: int = 16, page_size: int = 4, prefix_cache: bool = True, streaming_pages: int = 0,
    **scheduler: object,
) -> tuple[Engine, HashRunner]:  # fmt: skip
    """An engine around the double; its context is what the pages hold."""
    runner = HashRunner(num_pages, page_size, streaming_pages)
    config = SchedulerConfig(**{"max_step_tokens": 16, "max_running": 8, **scheduler})
    streaming = None
    if streaming_pages:
        routes = HeadRoutes((), {}, SINKS, WINDOW)
        streaming = StreamingPages(streaming_pages, page_size, routes, config.max_step_tokens)
    cache = PrefixCache(
        PageAllocator(num_pages),
        page_size,
        lambda sequence: root_digest(sequence.submit.cache_salt.encode(), *prefill_identity(sequence)),
        enabled=prefix_cache,
        streaming=streaming,
    )
    choice = Choice(DECODE if streaming_pages else None)
    info, sampler = _info(num_pages, page_size), Sampler(VOCAB, (EOS,))
    clock = itertools.count(step=0.001).__next__  # by the real one, examples would differ when run again
    return Engine(info, config, cache, runner, sampler, choice, clock=clock), runner


def _info(num_pages: int, page_size: int) -> ModelInfo:
    return ModelInfo(
        name="hash",
        max_context=num_pages * page_size,
        vocab_size=VOCAB,
        eos_token_ids=(EOS,),
        dtype="float32",
        device="cpu",
        num_pages=num_pages,
        page_size=page_size,
        plan="",
    )


def make_submit(
    request_id: str, prompt: list[int], max_tokens: int | None = 1, *, salt: str = "", priority: int = 0,
    progress: bool = False, prefill: str | None = None, **sampling: object,
) -> Submit:  # fmt: skip
    """A greedy request that does not stop early."""
    params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens, **sampling})
    return Submit(
        request_id=request_id,
        prompt=prompt,
        sampling=params,
        priority=priority,
        cache_salt=salt,
        progress=progress,
        prefill=None if prefill is None else {"method": prefill},
    )


def finish(engine: Engine, most_steps: int = 500) -> list[RequestEvent]:
    """Step until nothing is left, proving conservation after each step."""
    events: list[RequestEvent] = []
    for _ in range(most_steps):
        if not engine.busy:
            return events
        events += engine.step()
        engine.check()
    raise AssertionError("the engine does not come to an end")


def answers(events: list[RequestEvent]) -> dict[str, list[int]]:
    """The generated tokens of each request."""
    tokens: dict[str, list[int]] = {}
    for event in events:
        assert not isinstance(event, Failed), event
        if not isinstance(event, Progress):
            tokens.setdefault(event.request_id, []).extend(event.token_ids)
    return tokens


def first_event(events: list[RequestEvent], request_id: str) -> Tokens:
    """The event with a request's first token."""
    return next(e for e in events if isinstance(e, Tokens) and e.request_id == request_id)


def _refuse_cut_granules(batch: Batch) -> None:
    for chunk in batch.chunks:
        sequence = chunk.sequence
        if sequence.prefill is None or chunk.start >= sequence.num_prompt:
            continue
        if chunk.start % sequence.granule:
            raise GranuleCut("a chunk begins inside a granule")
        if chunk.end != sequence.num_prompt and (
            chunk.end % sequence.granule or chunk.end > sequence.num_prompt
        ):
            raise GranuleCut("a chunk ends inside a granule, or beyond the prompt")
        if not sequence.prefill.row_local and chunk.length > sequence.granule:
            raise GranuleCut("a chunk holds more than the one granule that it chooses by")


def _chosen_by(sequence: Sequence, position: int) -> np.uint64:
    """All that a prefill method may choose by: the granule's tokens, and whether the prompt's end is near."""
    if sequence.prefill is None or position >= sequence.num_prompt:
        return np.uint64(0)
    settings, granule = sequence.prefill.settings, sequence.granule
    end = min((position // granule + 1) * granule, sequence.num_prompt)
    in_tail = (position // settings.tile + 1) * settings.tile > sequence.num_prompt - settings.dense_tail
    choice = repr((settings, granule, in_tail, sequence.tokens[:end]))
    return np.frombuffer(hashlib.blake2b(choice.encode(), digest_size=8).digest(), dtype=np.uint64)[0]


def _number(sequence: Sequence, position: int, past: np.ndarray) -> np.uint64:
    salt = hashlib.blake2b(sequence.submit.cache_salt.encode(), digest_size=8).digest()
    weights = np.arange(1, len(past) + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    total = (past * weights).sum(dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = total ^ _TOKEN_WEIGHTS[sequence.tokens[position]] + np.uint64(position * 7919 + 1)
        mixed ^= _chosen_by(sequence, position)
        mixed = (mixed ^ np.frombuffer(salt, dtype=np.uint64)[0]) * np.uint64(0x9E3779B97F4A7C15)
        return np.uint64(mixed ^ (mixed >> np.uint64(29)))


def _logits(number: np.uint64) -> torch.Tensor:
    mixed = (number ^ _TOKEN_WEIGHTS) * np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy((mixed >> np.uint64(40)).astype(np.float32) / 2.0**21)
