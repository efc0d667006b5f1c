"""h2o: what a token's weight is, and that what went never comes back."""

from itertools import pairwise

import pytest
import torch

from tests.engine.models.families import build

from .driver import Job, drive, make, prompt, watch

PROMPT = prompt(70)
MAX_TOKENS = 9


def column_sums(family: str, tokens: list[int], layer_idx: int, group: int) -> torch.Tensor:
    """Attention that each token gets from all queries, [Hkv, n], by Hugging Face's own matrices."""
    with torch.inference_mode():
        output = build(family)(torch.tensor([tokens]), output_attentions=True)
    return output.attentions[layer_idx][0].sum(1).unflatten(0, (-1, group)).sum(1)


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma2"])
@pytest.mark.parametrize("largest_chunk", [512, 13])
def test_weights_are_column_sums_while_nothing_went(family, largest_chunk, load_family):
    loaded = load_family(family)
    method = make("h2o", loaded, budget=128)
    weights = {}

    def see(_selection, layer, _query):
        weights[layer.spec.layer_idx] = layer.get("weights")[0]

    watch(method, see)
    (trace,) = drive(loaded, [Job(PROMPT, method)], MAX_TOKENS, largest_chunk=largest_chunk)
    tokens = PROMPT + trace.tokens[:-1]
    spec = loaded.specs[1]
    expected = column_sums(family, tokens, 1, spec.num_heads // spec.num_kv_heads)
    torch.testing.assert_close(weights[1][:, : len(tokens)], expected, atol=1e-4, rtol=1e-4)
    assert not weights[1][:, len(tokens) :].any()


def test_the_heaviest_of_the_prompt_stay(gqa):
    method = make("h2o", gqa, budget=30)
    lists = []
    watch(method, lambda selection, _layer, _query: lists.append(selection.indices[0]))
    drive(gqa, [Job(PROMPT, method)], 2)
    sums = column_sums("llama", PROMPT, 0, 2)
    sums[:, :3] = torch.inf
    # The window of ten holds the new token.
    heavy = sums[:, : len(PROMPT) - 9].topk(20).indices.sort().values
    for head in range(2):
        assert lists[0][head].tolist() == [*heavy[head].tolist(), *range(len(PROMPT) - 9, len(PROMPT) + 1)]


def test_what_went_never_comes_back(gqa):
    method = make("h2o", gqa)
    kept: list[list[set[int]]] = []

    def see(selection, layer, _query):
        if layer.spec.layer_idx == 1:
            kept.append([{token for token in head if token >= 0} for head in selection.indices[0].tolist()])

    watch(method, see)
    drive(gqa, [Job(PROMPT, method)], 40)
    for step, (before, after) in enumerate(pairwise(kept)):
        for head in range(2):
            newest = len(PROMPT) + step + 1
            assert newest in after[head]
            assert after[head] - {newest} < before[head]
            assert len(after[head]) == 48
