"""What threads share of a batch: every part of every row once, evenly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.kernels import cpu_splits
from headway.kernels.cpu_splits import in_splits, shares_of

LENGTHS = st.lists(st.integers(0, 10**6), min_size=1, max_size=40)


@pytest.fixture(autouse=True)
def _shared(monkeypatch):
    monkeypatch.setattr(cpu_splits, "SHARED_NUMBERS", 1000)
    monkeypatch.setattr(cpu_splits, "share_out", lambda work, items: [work(range(i, i + 1)) for i in items])


def check(lengths, workers, patch):
    patch.setattr(cpu_splits, "threads", lambda: workers)
    shares, done = shares_of(np.array(lengths)), []

    def attend(rows, split, splits, out, lse):
        done.extend((row, split / splits, 1 / splits) for row in range(len(lengths))[rows])
        out[split, rows], lse[split, rows] = 1, 0

    out, lse = in_splits(attend, shares, (len(lengths), 2))
    assert (out.shape, lse.shape) == ((len(lengths), 2), (len(lengths),))
    assert (out == 1).all()
    np.testing.assert_allclose(lse, np.log(shares.splits), rtol=1e-6)
    assert sorted(done) == [
        (row, split / shares.splits, 1 / shares.splits)
        for row in range(len(lengths))
        for split in range(shares.splits)
    ]
    return shares


@given(LENGTHS, st.integers(1, 5))
def test_every_part_once(lengths, workers):
    with pytest.MonkeyPatch.context() as patch:
        shares = check(lengths, workers, patch)
        total = sum(lengths)
        if total < 1000 or workers == 1:
            assert (shares.splits, len(shares.rows)) == (1, 1)
            return
        most = max(sum(lengths[rows]) for rows in shares.rows) / shares.splits
        assert most <= total / workers + max(lengths) * (shares.splits == 1) + 1


def test_one_long_row_is_split(monkeypatch):
    assert check([100_000, 10, 10, 10], 2, monkeypatch).splits == 2
    assert check([1000] * 16, 2, monkeypatch).rows == [slice(0, 8), slice(8, 16)]
