"""Compiled kernels take half-precision numbers as they are, and powers of two to float32's precision."""

import numpy as np
import pytest
import torch

from headway.kernels import cpu_compile
from headway.kernels.cpu_compile import compiled, exp2, flat, widen


@compiled
def _widened(numbers, out):
    for i in range(len(numbers)):
        out[i] = widen(numbers[i])


@compiled
def _powers(numbers, out):
    for i in range(len(numbers)):
        out[i] = exp2(numbers[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_is_widened(dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    out = np.empty(len(every), np.float32)
    _widened(flat(every), out)
    torch.testing.assert_close(torch.from_numpy(out), every.float(), rtol=0, atol=0, equal_nan=True)


def test_powers_of_two():
    numbers = torch.cat((-126 * torch.rand(10_000), torch.arange(-126.0, 1.0)))
    out = np.empty(len(numbers), np.float32)
    _powers(flat(numbers), out)
    torch.testing.assert_close(
        torch.from_numpy(out).double(), torch.exp2(numbers.double()), rtol=3e-7, atol=0
    )


def test_memory_of_any_strides():
    cache = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    head_first = cache.transpose(1, 2)[:, 1:]
    memory, strides = flat(head_first), head_first.stride()
    assert memory[strides[0] + strides[1] + 2 * strides[2] + 3] == head_first[1, 1, 2, 3]
    assert len(memory) == strides[0] + 2 * strides[1] + 2 * strides[2] + 5


def test_where_nothing_can_be_kept_kernels_compile_all_the_same(monkeypatch):
    njit = cpu_compile.numba.njit

    def read_only(function, *, cache, **options):
        if cache:
            raise RuntimeError(f"cannot cache function {function.__name__!r}: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(cpu_compile.numba, "njit", read_only)
    assert compiled(lambda x: x + 1)(2) == 3
