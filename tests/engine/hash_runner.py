"""A model double whose logits depend on every token, position and page, so that any mix-up changes them."""

import hashlib

import numpy as np
import torch

from headway.engine.batch import Batch
from headway.engine.config import SchedulerConfig
from headway.engine.core import Engine
from headway.engine.messages import Failed, ModelInfo, Progress, RequestEvent, SamplingParams, Submit, Tokens
from headway.engine.pages import PageAllocator
from headway.engine.prefix_cache import PrefixCache, root_digest
from headway.engine.request import Sequence
from headway.engine.sampler import Sampler

VOCAB = 32
EOS = 1
POISON = np.uint64(0xDEADBEEF)
_TOKEN_WEIGHTS = np.random.default_rng(0).integers(0, 2**63, VOCAB, dtype=np.uint64)


class PageMixup(BaseException):
    """Not an Exception: the engine would take it for a fault of one request and try again."""


class HashRunner:
    """Keeps one number for each token in its page's slot, made from the token, its position, its tenant and
    all numbers before it, which it reads back through the block table as attention does."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.slots = np.full((num_pages, page_size), POISON)
        self.batches: list[Batch] = []
        self.fails_on: set[int] = set()

    def run(self, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        self._refuse_writes_to_shared_pages(batch)
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
        logits = [_logits(rows[row]) for row in batch.logit_rows()]
        return torch.stack(logits) if logits else torch.empty(0, VOCAB)

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
    sequence = Sequence(submit, list(submit.prompt), max_tokens, rope_length=0)
    numbers: list[np.uint64] = []
    while sequence.num_generated < max_tokens:
        for position in range(len(numbers), len(sequence.tokens)):
            numbers.append(_number(sequence, position, np.array(numbers, dtype=np.uint64)))
        sequence.tokens.append(int(_logits(numbers[-1]).argmax()))
        if sequence.tokens[-1] == EOS and not submit.sampling.ignore_eos:
            break
    return sequence.tokens[sequence.num_prompt :]


def make_engine(
    num_pages: int = 16, page_size: int = 4, prefix_cache: bool = True, **scheduler: object
) -> tuple[Engine, HashRunner]:
    """An engine around the double; its context is what the pages hold."""
    runner = HashRunner(num_pages, page_size)
    info = ModelInfo(
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
    config = SchedulerConfig(**{"max_step_tokens": 16, "max_running": 8, **scheduler})
    cache = PrefixCache(
        PageAllocator(num_pages),
        page_size,
        lambda sequence: root_digest(sequence.submit.cache_salt.encode()),
        enabled=prefix_cache,
    )
    return Engine(info, config, cache, runner, Sampler(VOCAB, (EOS,))), runner


def make_submit(
    request_id: str, prompt: list[int], max_tokens: int | None = 1, *, salt: str = "", priority: int = 0,
    progress: bool = False, **sampling: object,
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


def _number(sequence: Sequence, position: int, past: np.ndarray) -> np.uint64:
    salt = hashlib.blake2b(sequence.submit.cache_salt.encode(), digest_size=8).digest()
    weights = np.arange(1, len(past) + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    total = (past * weights).sum(dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = total ^ _TOKEN_WEIGHTS[sequence.tokens[position]] + np.uint64(position * 7919 + 1)
        mixed = (mixed ^ np.frombuffer(salt, dtype=np.uint64)[0]) * np.uint64(0x9E3779B97F4A7C15)
        return np.uint64(mixed ^ (mixed >> np.uint64(29)))


def _logits(number: np.uint64) -> torch.Tensor:
    mixed = (number ^ _TOKEN_WEIGHTS) * np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy((mixed >> np.uint64(40)).astype(np.float32) / 2.0**21)
