"""antidiagonal_mass as a Triton kernel in the interpreter."""

import mmap

import pytest
import torch

from headway.kernels.antidiagonal import antidiagonal_mass, gpu
from headway.kernels.paged_attention import plan
from tests.kernels.antidiagonals import check


@pytest.mark.parametrize(("block", "stride"), [(8, 1), (16, 4), (16, 16), (24, 8), (12, 4), (6, 2)], ids=str)
def test_blocks_and_strides(batch, block, stride):
    check(batch([(29, block + 29)]), block, stride, atol=3e-5)


def test_half_precision(batch):
    check(batch([(29, 45)], dtype=torch.float16), 16, 4, atol=3e-5)


def test_a_block_of_more_groups_than_a_program_holds(batch):
    block = 4 * gpu.BLOCK_N
    assert gpu.unit_groups(block // 2) == gpu.BLOCK_N
    check(batch([(9, block + 9)], heads=(2, 1)), block, 2)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 2 * gpu.BLOCK_M + 3])
def test_lengths(batch, tokens):
    check(batch([(tokens, tokens)], heads=(2, 1)), 16, 2)
    check(batch([(tokens, 32 + tokens)], heads=(2, 1)), 16, 2)


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_layouts(batch, page_size, layout):
    check(batch([(40, 72)], page_size=page_size, layout=layout, strided_query=True), 16, 4)


@pytest.mark.parametrize(("heads", "dim"), [((4, 4), 1), ((6, 2), 80), ((7, 1), 96), ((2, 1), 192)], ids=str)
def test_heads_and_head_sizes(batch, heads, dim):
    check(batch([(33, 49)], heads=heads, dim=dim), 16, 8, softcap=1.5)


def test_many_key_groups_before_few_queries(batch):
    check(batch([(3, 5 * gpu.BLOCK_N * 4 + 3)], heads=(2, 1)), 16, 4)


def test_a_pool_beyond_two_to_the_31_elements():
    """Page 2 begins 2^31 elements in: page numbers must be widened before they are multiplied."""
    page_stride, shape = 2**30, (3, 16, 1, 32)
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, not named before Python 3.13: only touched pages take memory
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, 2 * (2 * page_stride + 16 * 32), flags=flags)
    cache = torch.frombuffer(memory, dtype=torch.float16).as_strided(shape, (page_stride, 32, 32, 1))
    cache[2] = torch.randn(16, 1, 32)
    query = torch.randn(16, 2, 32).half()
    found = antidiagonal_mass(query, cache, plan([16], [16], [[2]], 16, "cpu"), 4, 1, scale=0.2)
    near = cache[2:].clone()
    expected = antidiagonal_mass(query, near, plan([16], [16], [[0]], 16, "cpu"), 4, 1, scale=0.2)
    assert found.equal(expected)
