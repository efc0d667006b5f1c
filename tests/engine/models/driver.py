"""Runs sequences through a ModelRunner in random chunks, mixed with each other, as a scheduler would."""

import random
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import torch

from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SamplingParams, Submit
from headway.engine.request import Sequence
from headway.engine.runner import ModelRunner


@dataclass
class Trace:
    """Greedy tokens of one sequence and the logits [vocab] of each."""

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


def sequence(prompt: list[int], max_tokens: int, **facts: Any) -> Sequence:
    """A sequence as admission would make it, without pages."""
    submit = Submit(request_id="test", prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens))
    return Sequence(submit, list(prompt), max_tokens, rope_length=len(prompt) + max_tokens, **facts)


def drive(
    loaded: LoadedModel,
    prompts: Many[list[int]],
    max_tokens: int,
    *,
    seed: int = 0,
    page_size: int = 4,
    largest_chunk: int = 8,
) -> list[Trace]:
    """Greedy dense decoding of all `prompts` side by side."""
    sequences = [sequence(prompt, max_tokens) for prompt in prompts]
    num_pages = pages_needed(sequences, page_size)
    cache = KVCache(loaded.specs, num_pages, page_size, loaded.dtype, loaded.device)
    return run(loaded, cache, sequences, seed=seed, largest_chunk=largest_chunk)


def pages_needed(sequences: Many[Sequence], page_size: int) -> int:
    """Pages that hold all sequences at their full length."""
    return sum(-(-item.rope_length // page_size) for item in sequences)


def run(
    loaded: LoadedModel,
    cache: KVCache,
    sequences: Many[Sequence],
    *,
    seed: int,
    largest_chunk: int,
    answers: Many[list[int] | None] | None = None,
) -> list[Trace]:
    """Greedy decoding side by side: random arrivals, chunk sizes and page numbers.

    Args:
        answers: per sequence, tokens to feed in place of its own; None: its own.
    """
    choose = random.Random(seed)
    numbers = list(range(pages_needed(sequences, cache.page_size)))
    choose.shuffle(numbers)
    for item in sequences:
        item.pages = [numbers.pop() for _ in range(pages_needed([item], cache.page_size))]
    arrivals = [choose.randrange(4) if index else 0 for index in range(len(sequences))]
    traces = [Trace() for _ in sequences]
    runner = ModelRunner(loaded, cache)
    try:
        step = 0
        while any(len(trace.tokens) < item.max_tokens for item, trace in zip(sequences, traces, strict=True)):
            members, chunks = [], []
            for index, item in enumerate(sequences):
                if arrivals[index] <= step and len(traces[index].tokens) < item.max_tokens:
                    together = max(1, item.exact - item.computed)
                    length = min(item.remaining, together, choose.randint(1, largest_chunk))
                    members.append(index)
                    chunks.append(Chunk(item, item.computed, length, samples=length == item.remaining))
            step += 1
            logits = iter(runner.run(Batch(tuple(chunks))))
            for index, chunk in zip(members, chunks, strict=True):
                chunk.sequence.computed = chunk.end
                if chunk.samples:
                    row, trace = next(logits), traces[index]
                    own = int(row.argmax())
                    answer = answers[index] if answers else None
                    chunk.sequence.tokens.append(own if answer is None else answer[len(trace.tokens)])
                    trace.logits.append(row)
                    trace.tokens.append(own)
        for item in sequences:
            runner.release(item)
    finally:
        runner.close()
    return traces
