"""Runs sequences through a ModelRunner in random chunks, mixed with each other, as a scheduler would."""

import random
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

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


def sequence(prompt: list[int], max_tokens: int) -> Sequence:
    """A sequence as admission would make it, without pages."""
    submit = Submit(request_id="test", prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens))
    return Sequence(submit, list(prompt), max_tokens, rope_length=len(prompt) + max_tokens)


def drive(
    loaded: LoadedModel,
    prompts: Many[list[int]],
    max_tokens: int,
    *,
    seed: int = 0,
    page_size: int = 4,
    largest_chunk: int = 8,
) -> list[Trace]:
    """Greedy decoding of all `prompts` side by side: random arrivals, chunk sizes and page numbers."""
    choose = random.Random(seed)
    sequences = [sequence(prompt, max_tokens) for prompt in prompts]
    needed = [-(-item.rope_length // page_size) for item in sequences]
    numbers = list(range(sum(needed)))
    choose.shuffle(numbers)
    for item, count in zip(sequences, needed, strict=True):
        item.pages = [numbers.pop() for _ in range(count)]
    arrivals = [choose.randrange(4) if index else 0 for index in range(len(sequences))]
    traces = [Trace() for _ in sequences]
    cache = KVCache(loaded.specs, sum(needed), page_size, loaded.dtype, loaded.device)
    runner = ModelRunner(loaded, cache)
    try:
        step = 0
        while any(len(trace.tokens) < max_tokens for trace in traces):
            members, chunks = [], []
            for index, item in enumerate(sequences):
                if arrivals[index] <= step and len(traces[index].tokens) < max_tokens:
                    length = min(item.remaining, choose.randint(1, largest_chunk))
                    members.append(index)
                    chunks.append(Chunk(item, item.computed, length, samples=length == item.remaining))
            step += 1
            logits = iter(runner.run(Batch(tuple(chunks))))
            for index, chunk in zip(members, chunks, strict=True):
                chunk.sequence.computed = chunk.end
                if chunk.samples:
                    row = next(logits)
                    traces[index].logits.append(row)
                    traces[index].tokens.append(int(row.argmax()))
                    chunk.sequence.tokens.append(int(row.argmax()))
    finally:
        runner.close()
    return traces
