"""ModelRunner: which rows come back, and that chunks and neighbours change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.runner import ModelRunner

from .driver import drive, sequence
from .families import VOCAB

PAGE_SIZE = 4


@pytest.fixture
def loaded(load_family):
    return load_family("qwen3")


@pytest.fixture
def runner(loaded):
    runner = ModelRunner(loaded, KVCache(loaded.specs, 16, PAGE_SIZE, loaded.dtype, loaded.device))
    yield runner
    runner.close()


def paged(prompt: list[int], pages: list[int]):
    item = sequence(prompt, 4)
    item.pages = pages
    return item


def own_logits(loaded, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(torch.tensor([tokens]), use_cache=False).logits[0]


def test_rows_come_in_the_order_of_logit_rows(loaded, request):
    first, second = paged(list(range(10)), [3, 1, 2, 0]), paged([9, 8, 7, 6, 5], [7, 5])
    expected = own_logits(loaded, first.tokens), own_logits(loaded, second.tokens)
    runner = request.getfixturevalue("runner")
    runner.run(Batch((Chunk(second, 0, 3, samples=False),)))
    batch = Batch(
        (
            Chunk(first, 0, 6, samples=False, prompt_logprob_rows=6),
            Chunk(second, 3, 2, samples=True, prompt_logprob_rows=1),
        )
    )
    logits = runner.run(batch)
    assert logits.dtype == torch.float32
    assert logits.shape == (len(batch.logit_rows()), loaded.vocab_size)
    torch.testing.assert_close(logits, torch.cat((expected[0][:6], expected[1][3:5])), atol=1e-4, rtol=1e-4)


def test_a_step_without_logits(runner, loaded):
    logits = runner.run(Batch((Chunk(paged([1, 2, 3], [4]), 0, 3, samples=False),)))
    assert logits.shape == (0, loaded.vocab_size)


def test_one_token_and_one_row(loaded, request):
    expected = own_logits(loaded, [7])
    logits = request.getfixturevalue("runner").run(Batch((Chunk(paged([7], [2]), 0, 1, samples=True),)))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_failing_batch_leaves_the_runner_usable(runner):
    beyond = paged([1, 2, 3], [99])
    with pytest.raises((IndexError, ValueError)):
        runner.run(Batch((Chunk(beyond, 0, 3, samples=True),)))
    assert runner.run(Batch((Chunk(paged([1, 2, 3], [1]), 0, 3, samples=True),))).isfinite().all()


PROMPTS = [
    torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (23, 9, 14)
]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), page_size=st.sampled_from([1, 2, 8, 16]), largest=st.integers(1, 30))
@pytest.mark.parametrize("family", ["gemma2", "deepseek-v3"])
def test_chunks_pages_and_neighbours_change_nothing(load_family, family, seed, page_size, largest):
    loaded = load_family(family)
    alone = [drive(loaded, [prompt], 3, largest_chunk=64)[0] for prompt in PROMPTS]
    mixed = drive(loaded, PROMPTS, 3, seed=seed, page_size=page_size, largest_chunk=largest)
    for trace, expected in zip(mixed, alone, strict=True):
        assert trace.tokens == expected.tokens
        torch.testing.assert_close(
            torch.stack(trace.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4
        )
