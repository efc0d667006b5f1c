"""Every family: greedy tokens and logits over the paged cache equal Hugging Face's own `generate`."""

import pytest
import torch

from .driver import drive
from .families import FAMILIES, VOCAB

MAX_TOKENS = 10
LENGTHS = (13, 29, 5, 21)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def generate(model, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batches_equal_generate(load_family, family):
    loaded = load_family(family)
    expected = [generate(loaded.model, prompt) for prompt in prompts()]
    for trace, (tokens, logits) in zip(drive(loaded, prompts(), MAX_TOKENS), expected, strict=True):
        assert trace.tokens == tokens
        torch.testing.assert_close(torch.stack(trace.logits), logits, atol=2e-4, rtol=1e-4)
    tokens, logits = expected[0]
    (alone,) = drive(loaded, prompts()[:1], MAX_TOKENS, largest_chunk=64)
    assert alone.tokens == tokens
    torch.testing.assert_close(torch.stack(alone.logits), logits, atol=2e-4, rtol=1e-4)
