"""Linear layers that multiply a few rows otherwise while a model is attached: same results, then undone."""

import pytest
import torch
from torch.nn import functional

from headway.engine import few_rows
from headway.engine.few_rows import few_row_layers


@pytest.fixture
def counted(monkeypatch):
    """Rows of each call of the kernel."""
    rows = []

    def count(states, weight, bias):
        rows.append(states.numel() // weight.shape[1])
        return functional.linear(states, weight, bias)

    monkeypatch.setattr(few_rows, "few_row_linear", count)
    return rows


def test_only_a_few_rows(counted):
    layer = torch.nn.Linear(512, 512).requires_grad_(False)
    with few_row_layers(layer):
        for count in (1, 2, 8, 16, 100, 1000):
            states = torch.randn(1, count, 512)
            expected = functional.linear(states, layer.weight, layer.bias)
            torch.testing.assert_close(layer(states), expected)
    assert counted == [8, 16]


def test_results():
    layers = torch.nn.Linear(512, 640, bias=False), torch.nn.GELU(), torch.nn.Linear(640, 512)
    model, states = torch.nn.Sequential(*layers), torch.randn(1, 9, 512)
    expected = model(states)
    with few_row_layers(model):
        torch.testing.assert_close(model(states), expected)


def test_undone():
    class Own(torch.nn.Linear):
        pass

    model = torch.nn.ModuleList([torch.nn.Linear(512, 512), Own(512, 512), torch.nn.Linear(16, 16)])
    with few_row_layers(model):
        assert ["forward" in vars(module) for module in model] == [True, False, False]
    with pytest.raises(ZeroDivisionError), few_row_layers(model):
        1 / 0  # noqa: B018
    assert not any("forward" in vars(module) for module in model)
