"""What a batch's chunks give: logits from the model, then scores and the next tokens from the sampler."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from headway.engine.batch import Batch, Chunk
from headway.engine.errors import RequestFailed
from headway.engine.isolation import isolated
from headway.engine.messages import Logprob, SelectionUsage
from headway.engine.request import Sequence
from headway.engine.sampler import Sample, Sampler


class Runner(Protocol):
    """What computes a batch; see `headway.engine.runner.ModelRunner`."""

    def run(self, batch: Batch) -> Tensor:
        """float32 [len(batch.logit_rows()), vocab_size]."""
        ...

    def release(self, sequence: Sequence) -> SelectionUsage | None:
        """Forget what was remembered of a sequence that ends; returns what selecting did for it."""
        ...

    def close(self) -> None:
        """Undo what the runner did to the model."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one chunk's logits gave: scores of prompt tokens, and the next token if the chunk samples."""

    scores: list[Logprob]
    sample: Sample | None


def run(runner: Runner, batch: Batch) -> list[Tensor | RequestFailed]:
    """Each chunk's logits, float32 [rows, vocab_size].

    Raises:
        EngineDead: the accelerator is lost.
    """

    def work(chunks: Iterable[Chunk]) -> list[Tensor]:
        part = Batch(tuple(chunks))
        sizes = [chunk.prompt_logprob_rows + chunk.samples for chunk in part.chunks]
        return list(torch.split(runner.run(part), sizes))

    return isolated(work, batch.chunks)


def sample(
    sampler: Sampler, batch: Batch, logits: list[Tensor | RequestFailed]
) -> list[Outcome | RequestFailed]:
    """Each chunk's outcome; a chunk whose run failed has failed."""
    outcomes: list[Outcome | RequestFailed] = []
    last_rows: dict[int, Tensor] = {}
    for index, (chunk, rows) in enumerate(zip(batch.chunks, logits, strict=True)):
        if isinstance(rows, RequestFailed):
            outcomes.append(rows)
            continue
        outcome: Outcome | RequestFailed = Outcome([], None)
        if chunk.prompt_logprob_rows:
            (outcome,) = isolated(partial(_score, sampler, chunk), [rows])
        outcomes.append(outcome)
        if chunk.samples and isinstance(outcome, Outcome):
            last_rows[index] = rows[-1:]

    def work(indices: Iterable[int]) -> list[Sample | RequestFailed]:
        rows, sequences = zip(*((last_rows[i], batch.chunks[i].sequence) for i in indices), strict=True)
        return sampler.sample(torch.cat(rows), list(sequences))

    samples = isolated(work, list(last_rows)) if last_rows else []
    for index, drawn in zip(last_rows, samples, strict=True):
        scored = outcomes[index]
        if isinstance(scored, Outcome):
            outcomes[index] = Outcome(scored.scores, drawn) if isinstance(drawn, Sample) else drawn
    return outcomes


def _score(sampler: Sampler, chunk: Chunk, logits: Iterable[Tensor]) -> list[Outcome]:
    count, sequence = chunk.prompt_logprob_rows, chunk.sequence
    (rows,) = logits
    following = torch.tensor(sequence.tokens[chunk.start + 1 : chunk.start + 1 + count])
    return [
        Outcome(sampler.score(rows[:count], following, sequence.submit.sampling.prompt_logprobs or 0), None)
    ]
