"""merge_states: parts of one attention, put together again."""

import pytest
import torch

from headway.kernels import dispatch
from headway.kernels.merge_states import merge_states


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def _version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("dim", [24, 64, 128])
def test_parts_of_a_softmax(parts, dim):
    tokens, heads, keys = 5, 3, 40
    scores = torch.randn(tokens, heads, keys).double() * 3
    values = torch.randn(heads, keys, dim).double()
    cuts = torch.arange(keys).tensor_split(parts)
    outs = torch.stack([torch.einsum("thn,hnd->thd", scores[..., c].softmax(-1), values[:, c]) for c in cuts])
    lses = torch.stack([scores[..., c].logsumexp(-1) for c in cuts])
    out, lse = merge_states(outs.float(), lses.float())
    torch.testing.assert_close(
        out.double(), torch.einsum("thn,hnd->thd", scores.softmax(-1), values), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-5, rtol=1e-5)


def test_parts_without_keys_are_ignored_even_when_nan():
    outs, lses = torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2)
    lses[1] = float("-inf")
    outs[1] = torch.nan
    out, lse = merge_states(outs, lses)
    expected, expected_lse = merge_states(outs[::2], lses[::2])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_rows_without_keys_are_zero():
    outs, lses = torch.randn(2, 4, 2, 8), torch.randn(2, 4, 2)
    lses[:, 1], outs[:, 1] = float("-inf"), torch.nan
    out, lse = merge_states(outs, lses)
    assert out[1].eq(0).all()
    assert lse[1].eq(float("-inf")).all()
    assert out[[0, 2, 3]].isfinite().all()


def test_dtype_strides_and_large_lses():
    outs = torch.randn(2, 2, 8, 5).transpose(1, 3)[..., :2].to(torch.bfloat16)
    lses = torch.tensor([1e4, 1e4 - 1.0])[:, None, None].expand(2, 5, 8)
    out, lse = merge_states(outs, lses)
    weight = torch.sigmoid(torch.tensor(1.0))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), (outs[0] * weight + outs[1] * (1 - weight)).float(), atol=2e-2, rtol=2e-2
    )
    torch.testing.assert_close(lse, torch.full((5, 8), 1e4 + 0.3133), atol=2e-3, rtol=0.0)


@pytest.mark.parametrize(
    ("outs", "lses", "names"),
    [
        (torch.zeros(4, 2, 8), torch.zeros(4, 2), "outs"),
        (torch.zeros(0, 4, 2, 8), torch.zeros(0, 4, 2), "outs"),
        (torch.zeros(2, 4, 2, 8), torch.zeros(2, 2, 4), "lses"),
        (torch.zeros(2, 4, 2, 8), torch.zeros(2, 4, 2, dtype=torch.float16), "lses"),
    ],
    ids=["3-D", "no part", "shape", "dtype"],
)
def test_refuses(outs, lses, names):
    with pytest.raises(ValueError, match=names):
        merge_states(outs, lses)
