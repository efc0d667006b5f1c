"""snapkv: who votes, that the list is frozen, and that it is recycled's without refresh."""

import pytest
import torch
from torch.nn.functional import avg_pool1d

from tests.engine.models.families import build

from .driver import Job, drive, make, prompt, watch

PROMPT = prompt(117)


def lists(loaded, job: Job, max_tokens: int = 2, **options: int) -> list[torch.Tensor]:
    """Every step's list [Hkv, M] of the second layer."""
    found = []
    watch(
        job.method,
        lambda selection, layer, _query: found.append(selection.indices[0]) if layer.spec.layer_idx else None,
    )
    drive(loaded, [job], max_tokens, **options)
    return found


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_the_last_queries_vote(reduce, gqa):
    """Oracle: Hugging Face's own attention matrices."""
    method = make("snapkv", gqa, observation=8, reduce=reduce)
    found = lists(gqa, Job(PROMPT, method))[0]
    with torch.inference_mode():
        output = build("llama")(torch.tensor([PROMPT]), output_attentions=True)
    votes = output.attentions[1][0, :, -8:, :-8].sum(1)
    by_group = avg_pool1d(votes, 5, stride=1, padding=2).view(2, 2, -1)
    scores = by_group.amax(1) if reduce == "max" else by_group.mean(1)
    scores[:, :3] = torch.inf
    best = scores[:, : len(PROMPT) - 10].topk(48 - 10).indices.sort().values
    for head in range(2):
        expected = [*best[head].tolist(), *range(len(PROMPT) - 10, len(PROMPT) + 1)]
        assert [token for token in found[head].tolist() if token >= 0] == expected


def test_the_list_is_frozen_and_all_later_tokens_are_read(gqa):
    method = make("snapkv", gqa, observation=8)
    found = lists(gqa, Job(PROMPT, method), 80)
    assert len(found) == 79
    made = found[0][:, :48]
    for step, indices in enumerate(found):
        assert torch.equal(indices[:, :48], made)
        later = indices[:, 48 : 48 + step + 1]
        assert torch.equal(later, torch.arange(117, 117 + step + 1, dtype=torch.int32).expand(2, -1))
        assert (indices[:, 48 + step + 1 :] == -1).all()


def test_queries_in_parts_vote_as_together(gqa):
    """A chunk ends in the midst of those that vote."""
    together = lists(gqa, Job(PROMPT, make("snapkv", gqa, observation=40)))
    for seed in range(3):
        parts = lists(gqa, Job(PROMPT, make("snapkv", gqa, observation=40)), seed=seed, largest_chunk=25)
        assert torch.equal(parts[0], together[0])


@pytest.mark.parametrize("length", [3, 20])
def test_a_prompt_shorter_than_those_that_vote_is_read_whole(length, gqa):
    found = lists(gqa, Job(prompt(length), make("snapkv", gqa, observation=32)))[0]
    assert found[0, : length + 1].tolist() == list(range(length + 1))


def test_with_one_vote_it_is_recycled_that_never_refreshes(gqa):
    """The same lists until newer tokens push recycled's weakest out of the budget."""
    snapkv = make("snapkv", gqa, observation=1, pool="max", pool_radius=3)
    recycled = make("recycled", gqa, similarity=-1, stride=1)
    frozen = lists(gqa, Job(PROMPT, snapkv))[0]
    kept = lists(gqa, Job(PROMPT, recycled))[0]
    for head in range(2):
        both = [{token for token in one[head].tolist() if token >= 0} for one in (frozen, kept)]
        assert len(both[0]) == 49
        assert len(both[1]) == 48
        assert both[1] < both[0]
