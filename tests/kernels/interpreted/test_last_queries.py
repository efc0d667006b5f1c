"""last_queries as Triton kernels in the interpreter."""

import pytest
import torch

from headway.kernels.last_queries import last_queries
from tests.kernels.last_rows import check


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "kind", [{}, {"softcap": 0.7}, {"sinks": torch.linspace(-2, 2, 4)}], ids=["plain", "softcap", "sinks"]
)
def test_kinds(batch, dtype, kind):
    check(last_queries, batch([(20, 150)], dtype=dtype), 20, **kind)


@pytest.mark.parametrize(
    ("rows", "length"), [(1, 1), (1, 40), (16, 16), (17, 127), (64, 128), (64, 193), (70, 600)]
)
def test_rows_and_lengths(batch, rows, length):
    check(last_queries, batch([(rows, length)], heads=(2, 1)), rows)


@pytest.mark.parametrize(("heads", "dim"), [((3, 3), 80), ((5, 1), 96), ((2, 1), 192)], ids=str)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_heads_and_head_sizes(batch, heads, dim, layout):
    check(last_queries, batch([(10, 60)], heads=heads, dim=dim, layout=layout, page_size=3), 10)
