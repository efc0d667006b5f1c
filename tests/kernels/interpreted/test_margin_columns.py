"""margin_columns as a Triton kernel in the interpreter."""

import pytest
import torch

from headway.kernels.margin_columns import gpu
from tests.kernels.margin_case import make_case


@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize(("heads", "dim"), [((4, 2), 32), ((3, 3), 24), ((7, 1), 80)], ids=str)
def test_rows_heads_and_head_sizes(rows, heads, dim):
    make_case(rows, 70, heads=heads, dim=dim).check(3, 65, 0.5)


@pytest.mark.parametrize("length", [1, gpu.BLOCK_N - 1, gpu.BLOCK_N, gpu.BLOCK_N + 1])
@pytest.mark.parametrize(("page_size", "layout"), [(16, "NHD"), (3, "HND")])
def test_ranges(length, page_size, layout):
    make_case(3, length + 9, page_size=page_size, layout=layout).check(5, 5 + length, -0.5)


def test_half_precision():
    make_case(5, 100, dtype=torch.float16).check(0, 100, 0.2)
