"""run_mass against an oracle in fp64, run by run."""

import pytest
import torch

from headway.kernels import dispatch
from headway.kernels.run_mass import cpu, run_mass


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def _version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")


def check(scores, run, ends):
    """What is less than 1e-30 of a row's highest, 69 below it as a logarithm, need not be told apart."""
    found = run_mass(scores.clone(), run, ends)
    heads, rows, keys = scores.shape
    assert found.shape == (heads, rows, -(-keys // run))
    for row, end in enumerate(ends.tolist()):
        for i in range(found.shape[2]):
            some = scores[:, row, i * run : max(i * run, min((i + 1) * run, end, keys))].double()
            given = found[:, row, i].double()
            if not some.shape[1]:
                assert given.isneginf().all()
                continue
            lowest = scores[:, row, :end].amax(-1).double() - 69
            expected = some.logsumexp(-1).maximum(lowest)
            torch.testing.assert_close(given.maximum(lowest), expected, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("keys", [1, 31, 32, 33, 103, 500])
@pytest.mark.parametrize("run", [1, 5, 8, 32, 600])
def test_mass(keys, run):
    ends = torch.tensor([-3, 0, 1, run, run + 1, keys // 2, keys, keys + 7])
    check(torch.randn(3, len(ends), keys) * 4, run, ends)


@pytest.mark.parametrize("spread", [0.0, 1e-20, 80.0, 1e30])
def test_far_apart_or_alike(spread):
    scores = torch.randn(2, 3, 64) * spread
    scores[0, 1, 8:30] = -torch.inf
    check(scores, 8, torch.tensor([64, 61, 5]))


def test_shared_among_threads(monkeypatch):
    def backwards(work, items):
        for item in reversed(items):
            work(range(item, item + 1))

    monkeypatch.setattr(cpu, "SHARED_SCORES", 0)
    monkeypatch.setattr(cpu, "share_out", backwards)
    check(torch.randn(2, 5, 77), 16, torch.tensor([77, 3, 50, 0, 76]))


def test_nothing_to_sum():
    assert run_mass(torch.empty(2, 3, 0), 8, torch.zeros(3, dtype=torch.int64)).shape == (2, 3, 0)
    assert run_mass(torch.empty(2, 0, 9), 8, torch.zeros(0, dtype=torch.int64)).shape == (2, 0, 2)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"scores": torch.zeros(2, 3, 8, dtype=torch.float64)}, "scores"),
        ({"scores": torch.zeros(3, 8)}, "scores"),
        ({"scores": torch.zeros(2, 8, 3).transpose(1, 2)}, "scores"),
        ({"ends": torch.zeros(2, dtype=torch.int64)}, "ends"),
        ({"ends": torch.zeros(3, dtype=torch.int32)}, "ends"),
        ({"run": 0}, "run"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refuses(change, names):
    good = {"scores": torch.zeros(2, 3, 8), "run": 4, "ends": torch.full((3,), 8)}
    run_mass(**good)
    with pytest.raises(ValueError, match=names):
        run_mass(**{**good, **change})
