"""few_row_linear against the product in fp64: any number of rows, shapes that fill no tile, every dtype."""

import pytest
import torch
from torch.nn import functional

from headway.kernels import dispatch
from headway.kernels.few_row_linear import cpu, few_row_linear, worthwhile_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def _version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")


def check(rows, weight, bias=None):
    found = few_row_linear(rows, weight, bias)
    assert (found.shape, found.dtype) == ((*rows.shape[:-1], len(weight)), rows.dtype)
    exact = functional.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    # A sum's error grows with its parts; the last rounding is that of the result's dtype.
    parts = functional.linear(rows.double().abs(), weight.double().abs())
    allowed = 4e-7 * parts + torch.finfo(rows.dtype).eps * exact.abs() + 1e-30
    assert ((found.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "size"), [(4, 16), (5, 32), (6, 192), (7, 48), (64, 16), (257, 64)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13, 16, 33])
def test_product(count, width, size, dtype):
    check(torch.randn(count, size).to(dtype), torch.randn(width, size).to(dtype))


@pytest.mark.parametrize(("width", "size"), [(3, 16), (1, 64), (8, 17), (8, 1), (5, 24)])
def test_shapes_without_tiles(width, size):
    check(torch.randn(5, size), torch.randn(width, size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_and_leading_dimensions(dtype):
    weight, bias = torch.randn(9, 32).to(dtype), torch.randn(9).to(dtype)
    check(torch.randn(2, 3, 32).to(dtype), weight, bias)
    check(torch.randn(32).to(dtype), weight, bias)
    check(torch.randn(0, 32).to(dtype), weight)


def test_any_strides():
    rows, weight = torch.randn(64, 7).T, torch.randn(64, 12).T
    check(rows, weight)
    check(torch.randn(5, 128)[:, ::2], torch.randn(12, 128)[:, 64:])
    check(torch.randn(1, 64).expand(6, 64), torch.randn(12, 64))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("width", [4, 23, 300, 1030])
def test_shared_among_threads(monkeypatch, width):
    monkeypatch.setattr(cpu, "SHARED_PRODUCTS", 0)
    check(torch.randn(6, 64), torch.randn(width, 64))


def test_what_is_not_a_number_stays_in_its_row():
    rows, weight = torch.randn(7, 32), torch.randn(10, 32)
    rows[2, 5], rows[4, 0] = torch.nan, torch.inf
    found = few_row_linear(rows, weight)
    assert found[2].isnan().all()
    assert not found[4].isfinite().any()
    check(rows[[0, 1, 3, 5, 6]], weight)
    assert found[[0, 1, 3, 5, 6]].isfinite().all()


def test_worthwhile_rows(request):
    served = worthwhile_rows(torch.empty(1024, 1024))
    assert (len(served) == 0) == ("reference" in request.node.name)
    assert 1 not in served
    assert not worthwhile_rows(torch.empty(8, 16))
    assert not worthwhile_rows(torch.empty(1024, 1001))
    assert not worthwhile_rows(torch.empty(1024, 1024, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rows", "weight", "bias", "name"),
    [
        (torch.ones(2, 16), torch.ones(4, 32), None, "rows"),
        (torch.ones(2, 16), torch.ones(16), None, "weight"),
        (torch.ones(2, 16), torch.ones(4, 16).half(), None, "weight"),
        (torch.ones(2, 16), torch.ones(4, 16), torch.ones(5), "bias"),
        (torch.ones(2, 16), torch.ones(4, 16), torch.ones(4).half(), "bias"),
    ],
)
def test_refused(rows, weight, bias, name):
    with pytest.raises(ValueError, match=name):
        few_row_linear(rows, weight, bias)
