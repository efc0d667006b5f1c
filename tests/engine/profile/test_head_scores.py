"""Tables of scores."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.profile.head_scores import by_kv_head, heads_from, rank_correlation, table

score = st.floats(0, 1, width=32, allow_subnormal=False)
scores = st.lists(score, min_size=2, max_size=12)


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_table_holds_its_rows_and_nothing_else(rows):
    made = table([torch.tensor(row) for row in rows])
    assert made.shape == (len(rows), max(map(len, rows)))
    assert [[value for value in row if not math.isnan(value)] for row in made.tolist()] == rows


def test_rows_of_any_rank_are_padded_at_their_ends():
    made = table([torch.ones(1, 3), torch.full((2, 2), 2.0)])
    nan = torch.nan
    expected = torch.tensor([[[1, 1, 1], [nan, nan, nan]], [[2, 2, nan], [2, 2, nan]]])
    torch.testing.assert_close(made, expected, equal_nan=True)


def test_a_kv_head_has_the_score_of_its_neediest_query_head():
    specs = [
        SimpleNamespace(layer_idx=0, num_heads=4, num_kv_heads=2),
        SimpleNamespace(layer_idx=1, num_heads=2, num_kv_heads=1),
    ]
    query_heads = table([torch.tensor([0.1, 0.4, 0.9, 0.0]), torch.tensor([0.2, 0.3])])
    found = by_kv_head(query_heads, specs)
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.9], [0.3, torch.nan]]), equal_nan=True)


@given(scores, score)
def test_heads_from_a_threshold_come_the_highest_first(values, threshold):
    grid = table([torch.tensor(values), torch.tensor(values[:1])])
    heads = heads_from(grid, threshold)
    found = [float(grid[head]) for head in heads]
    assert found == sorted(found, reverse=True)
    assert len(set(heads)) == len(heads) == sum(value >= threshold for value in [*values, values[0]])


@given(scores)
def test_correlation_of_ranks_knows_order_only(values):
    draw = torch.tensor(values)
    varied = len(set(values)) > 1
    stretched = draw.double() ** 3 * 5 + draw.double()
    assert rank_correlation([draw, stretched]) == pytest.approx(1.0 if varied else 0.0)
    assert rank_correlation([draw, -draw]) == pytest.approx(-1.0 if varied else 0.0)
    assert rank_correlation([draw]) is None


def test_equal_ranks_are_shared():
    # Spearman's definition by hand: ranks (0, 1.5, 1.5, 3) and (0, 1, 2, 3).
    expected = 4.5 / math.sqrt(4.5 * 5)
    assert rank_correlation([torch.tensor([1.0, 2, 2, 3]), torch.tensor([1.0, 2, 3, 4])]) == pytest.approx(
        expected
    )
