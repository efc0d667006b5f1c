"""Block scores to blocks: against sorting by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.methods.prefill.streaming import Method, Settings
from headway.engine.selection.blocks import best_blocks, candidates, covering_blocks, pooled_scores, spans_of

from .layers import GROUP, HEADS, KV_HEADS, randn
from .prefill_layers import chunks, prompt

scores = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0]), min_size=7, max_size=7), min_size=1, max_size=4
)
flags = st.lists(st.booleans(), min_size=7, max_size=7)


def listed(blocks: torch.Tensor) -> list[list[int]]:
    """The blocks of each row; padding stands at the end alone."""
    assert blocks.dtype == torch.int32
    rows = blocks.flatten(0, -2).tolist()
    for row in rows:
        assert row == sorted(one for one in row if one >= 0) + [-1] * row.count(-1)
    return [[one for one in row if one >= 0] for row in rows]


@given(values=scores, allowed=flags, count=st.integers(1, 9))
def test_the_best_allowed_blocks(values, allowed, count):
    found = best_blocks(torch.tensor([values]), torch.tensor(allowed), count)
    places = [place for place in range(7) if allowed[place]]
    expected = [sorted(sorted(places, key=lambda at: -row[at])[:count]) for row in values]
    assert listed(found) == expected
    assert found.shape[-1] == max(map(len, expected))


@given(values=scores, allowed=flags, share=st.sampled_from([0.01, 0.3, 0.5, 0.9, 1.01]))
def test_the_fewest_blocks_that_cover(values, allowed, share):
    masses = [[value / max(sum(row), 1.0) for value in row] for row in values]
    found = listed(covering_blocks(torch.tensor([masses]), torch.tensor(allowed), share))
    for row, chosen in zip(masses, found, strict=True):
        places = [place for place in range(7) if allowed[place]]
        held = sum(row[place] for place in range(7) if not allowed[place])
        ranked = sorted(places, key=lambda at: -row[at])
        # by fp32 sums: where a prefix reaches the share just so, one block more or less is right
        fits = [
            count
            for count in range(len(places) + 1)
            if held + sum(row[at] for at in ranked[:count]) >= share * sum(row) - 1e-5
            and (not count or held + sum(row[at] for at in ranked[: count - 1]) < share * sum(row) + 1e-5)
        ]
        assert chosen == sorted(ranked[: len(chosen)])
        if share > 1 and sum(row):
            assert chosen == places
        elif sum(row):
            assert len(chosen) in fits


def test_the_earlier_of_equal_blocks_wins():
    same = torch.full((1, 1, 6), 1 / 6)
    allowed = torch.tensor([False, True, True, True, True, False])
    assert listed(best_blocks(same.clone(), allowed, 2)) == [[1, 2]]
    assert listed(covering_blocks(same, allowed, 0.6)) == [[1, 2]]


def test_no_block_at_all():
    nothing = torch.zeros(2, 3, 0)
    allowed = torch.zeros(3, 0, dtype=torch.bool)
    assert listed(best_blocks(nothing, allowed, 4)) == [[]] * 6
    assert listed(covering_blocks(nothing, allowed, 0.9)) == [[]] * 6


def test_blocks_that_are_read_anyway_are_no_candidates():
    settings = Settings(sink_size=10, window_size=5, tile=8, dense_below=8, dense_tail=9)
    method = Method(settings)
    view, _ = list(chunks(method, *prompt(50), granules=3))[1]
    assert (view.start, view.end) == (24, 48)
    found = candidates(view, settings, 4, 12)
    # Tile starts 24, 32, 40: local from 19, 27, 0 (the dense tail begins at 41). Sinks hold blocks 0 and 1.
    assert [torch.nonzero(row).flatten().tolist() for row in found[0]] == [[2, 3, 4], [2, 3, 4, 5, 6], []]
    own = torch.tensor([[16, 16, 16]], dtype=torch.int32)
    with_own = candidates(view, settings, 4, 12, own)
    assert [torch.nonzero(row).flatten().tolist() for row in with_own[0]] == [[2, 3], [2, 3], []]


@pytest.mark.parametrize("softcap", [None, 0.3])
def test_pooled_scores_are_products_of_means(softcap):
    query, vectors = randn(21, HEADS, 16), randn(5, KV_HEADS, 16, seed=1)
    found = pooled_scores(query, vectors, tile=8, scale=0.25, softcap=softcap)
    means = torch.stack([part.mean(0) for part in query.double().split(8)])
    expected = 0.25 * torch.einsum("thd,nhd->htn", means, vectors.double().repeat_interleave(GROUP, 1))
    if softcap is not None:
        expected = softcap * (expected / softcap).tanh()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_spans_begin_where_blocks_do():
    assert spans_of(torch.tensor([[0, 3, -1]], dtype=torch.int32), 16).tolist() == [[0, 48, -1]]
