"""Fused RMS norms: which modules are recognised, that they compute the same, and that leaving undoes it."""

import pytest
import torch
from torch import nn

from headway.engine.norms import fused_norms


class Plain(nn.Module):
    """Llama's norm; `one` makes it Gemma's."""

    def __init__(self, size: int, one: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size).to(dtype))
        self.one, self.eps = one, 1e-5

    def forward(self, x):
        rows = x.float()
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + self.eps)
        return (rows * (self.one + self.weight.float())).type_as(x)


class Gated(Plain):
    def forward(self, x, gate=None):
        return super().forward(x) if gate is None else super().forward(x) * gate


class Centred(Plain):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class WithoutEpsilonInside(Plain):
    def forward(self, x):
        return self.weight * x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + self.eps)


@pytest.mark.parametrize("one", [0.0, 1.0], ids=["plain", "one-plus"])
@pytest.mark.parametrize("shape", [(1, 1, 48), (1, 7, 48), (1, 5, 4, 48)], ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_same_result(one, shape, size):
    norm, rows = Plain(48, one), torch.randn(shape) * size
    expected = norm(rows)
    before = rows.clone()
    with fused_norms(norm):
        assert "forward" in vars(norm)
        torch.testing.assert_close(norm(rows), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(rows, before)
    assert "forward" not in vars(norm)
    assert torch.equal(norm(rows), expected)


def test_rows_do_not_touch_each_other():
    norm, rows = Plain(48), torch.randn(3, 48)
    with fused_norms(norm):
        alone = norm(rows[2:])
        rows[0] = torch.nan
        rows[1] = 0.0
        together = norm(rows)
    assert torch.equal(together[2:], alone)
    assert together[0].isnan().all()
    assert torch.equal(together[1], torch.zeros(48))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_the_same_or_left_alone(dtype):
    norm, rows = Plain(48, dtype=dtype), torch.randn(5, 48).to(dtype)
    expected = norm(rows)
    with fused_norms(norm):
        assert norm(rows).dtype == dtype
        torch.testing.assert_close(norm(rows), expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("other", [Gated(48), Centred(48), WithoutEpsilonInside(48), nn.LayerNorm(48)])
def test_others_are_left_alone(other):
    with fused_norms(other):
        assert "forward" not in vars(other)


def test_undone_after_an_error():
    model = nn.Sequential(Plain(8), nn.Linear(8, 8), Plain(8))
    with fused_norms(model):
        assert ["forward" in vars(module) for module in model] == [True, False, True]
    with pytest.raises(ZeroDivisionError), fused_norms(model):
        1 / 0  # noqa: B018
    assert not any("forward" in vars(module) for module in model)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_families_have_their_norms_fused(load_family, family):
    model = load_family(family).model
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    with fused_norms(model):
        assert norms
        assert all("forward" in vars(norm) for norm in norms)
