"""The fewest units that hold enough, against adding up in plain Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.selection.fewest import fewest, lacking

LENGTH = 6
rows = st.lists(
    st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 8.0]), min_size=LENGTH, max_size=LENGTH),
    min_size=1,
    max_size=4,
)


@given(weights=rows, wanted=st.sampled_from([-1.0, 0.0, 0.25, 0.6, 2.0, 100.0]), least=st.integers(0, 8))
def test_the_heaviest_until_it_is_enough(weights, wanted, least):
    found = fewest(torch.tensor(weights), wanted, least)
    for row, taken in zip(weights, found.tolist(), strict=True):
        expected, held = set(), 0.0
        for at in sorted((at for at in range(LENGTH) if row[at] >= 0), key=lambda at: (-row[at], at)):
            if held < wanted or len(expected) < least:
                expected.add(at)
                held += row[at]
        assert {at for at in range(LENGTH) if taken[at]} == expected


def test_each_row_may_want_its_own():
    weights = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    wanted = torch.tensor([[0.0], [4.0]])
    assert fewest(weights, wanted).tolist() == [[False, False, False], [False, True, True]]


def test_what_all_others_hold_is_not_lacking():
    mass = torch.tensor([[1.0, 2.0, 5.0], [4.0, 2.0, 2.0]])
    assert lacking(mass, torch.tensor([False, True, True]), 0.5).tolist() == [[3.0], [0.0]]
