"""top_k in Triton's interpreter: short rows in one program, long ones over several launches."""

import pytest
import torch

from headway.kernels.top_k import gpu, reference, top_k

INF, NAN = torch.inf, torch.nan


@pytest.fixture(params=[1, 200], ids=lambda length: f"long from {length}")
def split(request, monkeypatch):
    """Rows longer than the parameter are divided, over splits of several blocks and some of none."""
    monkeypatch.setattr(gpu, "SHORT_ROW", request.param)
    monkeypatch.setattr(gpu, "BLOCK", 32)
    monkeypatch.setattr(gpu, "MAX_SPLITS", 4)


def rows(length):
    """One of each hostile kind."""
    normal = torch.randn(10, length)
    normal[1] = normal[1].round()
    normal[2] = 1.5
    normal[3] = 1.0 + torch.randint(0, 3, (length,)) * 2**-23
    normal[4] = normal[4].sort().values
    normal[5, length // 2 :] = -INF
    normal[6, ::3], normal[6, 1::3] = NAN, INF
    normal[7] = -INF
    normal[8] = torch.where(normal[8] > 0, 0.0, -0.0)
    normal[9] = normal[9] * 1e-39
    return normal


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize(("length", "k"), [(1, 2), (37, 1), (100, 100), (131, 9), (131, 140)])
def test_against_the_reference(length, k):
    scores = rows(length)
    assert top_k(scores, k).equal(reference.top_k(scores, k, None))


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_limits_and_strides(dtype):
    scores = rows(140)[:, 3:].view(2, 5, 137).transpose(0, 1)
    limits = torch.tensor([0, -2, 1, 5, 11, 12, 40, 3, 2, 7]).to(dtype).view(2, 5).T
    assert top_k(scores, 11, limits).equal(reference.top_k(scores, 11, limits))
