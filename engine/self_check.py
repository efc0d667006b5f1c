"""The start-up self-check: logits over the paged cache must equal the model's own."""

import math

import torch
from transformers import PreTrainedModel

from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.errors import ModelRefused
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SamplingParams, Submit
from headway.engine.request import Sequence
from headway.engine.runner import ModelRunner

LENGTHS = (37, 19)
PAGE_SIZE = 8
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Largest difference allowed, as a share of the logits' own spread.

In bfloat16 needle's own forward pass is 0.12 away from float32, over the paged cache 0.08; a wrong position
or mask moves logits by their whole spread.
"""
QUANTILE = 0.75
"""Share of each sequence's rows that must agree: rounding may send a few tokens to another expert."""


def self_check(loaded: LoadedModel) -> None:
    """Run two sequences, in chunks and side by side, and compare with the model's own forward pass.

    Raises:
        ModelRefused: the logits differ, or the paged run fails.
    """
    sequences = _sequences(loaded.vocab_size)
    expected = [_own_logits(loaded.model, sequence.tokens) for sequence in sequences]
    num_pages = sum(len(sequence.pages) for sequence in sequences)
    cache = KVCache(loaded.specs, num_pages, PAGE_SIZE, loaded.dtype, loaded.device)
    runner = ModelRunner(loaded, cache)
    try:
        actual = _paged_logits(runner, sequences)
    except Exception as failure:
        raise ModelRefused(
            f"{type(loaded.model).__name__} does not run over the paged cache: "
            f"{type(failure).__name__}: {failure}"
        ) from failure
    finally:
        runner.close()
    limit = TOLERANCE[loaded.dtype]
    for paged, own in zip(actual, expected, strict=True):
        errors = (paged - own).square().mean(dim=-1).sqrt() / own.std().clamp_min(1e-6)
        error = float(errors.quantile(QUANTILE))
        # Written so that NaN is refused, too.
        if not error <= limit:
            raise ModelRefused(
                f"{type(loaded.model).__name__} over the paged cache differs from its own forward pass: by "
                f"{error:.2g} of the logits' spread, {limit:g} allowed"
            )


def _sequences(vocab_size: int) -> list[Sequence]:
    generator = torch.Generator().manual_seed(0)
    sequences = []
    page = 0
    for number, length in enumerate(LENGTHS):
        tokens = torch.randint(vocab_size, (length,), generator=generator).tolist()
        submit = Submit(request_id=f"self-check-{number}", prompt=tokens, sampling=SamplingParams())
        pages = -(-length // PAGE_SIZE)
        sequence = Sequence(submit, list(tokens), max_tokens=1, rope_length=length)
        sequence.pages = list(range(page, page + pages))
        page += pages
        sequences.append(sequence)
    return sequences


def _own_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        input_ids = torch.tensor([tokens], device=model.device)
        logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits[0].float()
    return logits


def _paged_logits(runner: ModelRunner, sequences: list[Sequence]) -> list[torch.Tensor]:
    rows: list[list[torch.Tensor]] = [[] for _ in sequences]
    for share in (0.0, 0.4), (0.4, 0.5), (0.5, 0.99), (0.99, 1.0):  # the last one: a decode
        chunks = []
        for sequence in sequences:
            start, end = (math.floor(part * len(sequence.tokens)) for part in share)
            chunks.append(
                Chunk(sequence, start, end - start, samples=True, prompt_logprob_rows=end - start - 1)
            )
        logits = runner.run(Batch(tuple(chunks)))
        offset = 0
        for number, chunk in enumerate(chunks):
            rows[number].append(logits[offset : offset + chunk.length])
            offset += chunk.length
    return [torch.cat(parts) for parts in rows]
