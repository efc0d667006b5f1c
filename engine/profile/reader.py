"""Reader: a text in the cache, and answers about it by any decode method; `WatchedRun` knows no methods."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SamplingParams, Submit
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.profile.watched_run import CHUNK, PAGE_SIZE
from headway.engine.request import Sequence
from headway.engine.runner import ModelRunner


class Reader:
    """Holds one text at a time."""

    def __init__(self, runner: ModelRunner, pages: list[int]) -> None:
        self._runner, self._pages = runner, pages

    def read(self, tokens: list[int], start: int = 0) -> None:
        """Compute `tokens` densely from position `start` on; those before it have been read."""
        sequence = self._sequence(tokens)
        for first in range(start, len(tokens), CHUNK):
            length = min(CHUNK, len(tokens) - first)
            self._runner.run(Batch((Chunk(sequence, first, length, samples=False),)))

    def answer(self, prompt: list[int], answer: list[int], method: DecodeMethod[Any] | None) -> Tensor:
        """Feed an answer token by token behind a prompt that has been read; None: densely.

        Returns:
            float32 [len(answer), vocab], the log-probabilities after each of its tokens.
        """
        sequence = self._sequence(prompt, method)
        rows = []
        for token in answer:
            sequence.tokens.append(token)
            chunk = Chunk(sequence, len(sequence.tokens) - 1, 1, samples=True)
            rows.append(self._runner.run(Batch((chunk,)))[-1].log_softmax(-1))
        self._runner.release(sequence)
        return torch.stack(rows)

    def _sequence(self, tokens: list[int], method: DecodeMethod[Any] | None = None) -> Sequence:
        room = len(self._pages) * PAGE_SIZE
        submit = Submit(request_id="profile", prompt=tokens, sampling=SamplingParams())
        sequence = Sequence(submit, list(tokens), room - len(tokens), rope_length=room, decode=method)
        sequence.pages = self._pages
        return sequence


@contextmanager
def reader(loaded: LoadedModel, tokens: int) -> Iterator[Reader]:
    """A reader of texts of up to so many tokens, answers included; the model is as it was on leaving."""
    pages = -(-tokens // PAGE_SIZE)
    runner = ModelRunner(loaded, KVCache(loaded.specs, pages, PAGE_SIZE, loaded.dtype, loaded.device))
    try:
        yield Reader(runner, list(range(pages)))
    finally:
        runner.close()
