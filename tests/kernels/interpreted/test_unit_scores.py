"""unit_scores and page_summary as Triton kernels in the interpreter."""

import mmap

import pytest
import torch

from headway.kernels.page_summary import reference as summary_reference
from headway.kernels.page_summary import summarise_pages
from headway.kernels.paged_attention import plan
from headway.kernels.unit_scores import gpu, unit_scores

LENS = [1, 90, 16, 33, 15]
KINDS = {
    "none": {},
    "max": {"reduce": "max", "scale": 0.125},
    "mean": {"reduce": "mean", "scale": -0.5},
    "softcap": {"softcap": 1.5},
    "softcap mean": {"softcap": 1.5, "reduce": "mean"},
    "active": {"reduce": "max", "active": torch.tensor([True, False, True, True, False])},
}


def check(group, atol=3e-5, **kind):
    scores = unit_scores(group.query, group.table, group.plan, **kind)
    torch.testing.assert_close(scores.double(), group.oracle(**kind), atol=atol, rtol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scores(scored_group, kind, dtype):
    check(scored_group(LENS, dtype=dtype), **KINDS[kind])


@pytest.mark.parametrize(("page_size", "units"), [(16, 16), (16, 1), (16, 4), (3, 3), (64, 2)], ids=str)
@pytest.mark.parametrize("layout", ["NHD", "HND", "view"])
def test_tables(scored_group, page_size, units, layout):
    check(scored_group(LENS, page_size=page_size, units=units, layout=layout))


@pytest.mark.parametrize(
    ("heads", "dim"), [((4, 4), 1), ((6, 2), 80), ((7, 1), 96), ((20, 1), 192), ((71, 1), 32)], ids=str
)
@pytest.mark.parametrize("kind", ["none", "max", "mean"])
def test_heads_and_head_sizes(scored_group, heads, dim, kind):
    check(scored_group([30, 17], heads=heads, dim=dim), **KINDS[kind])


@pytest.mark.parametrize("length", [gpu.BLOCK_N - 1, gpu.BLOCK_N, gpu.BLOCK_N + 1])
def test_lengths_around_a_tile(scored_group, length):
    check(scored_group([length, 3 * length]))


def test_a_padded_row_of_a_captured_graph(scored_group):
    group = scored_group([40, 30])
    group.plan.kv_lens[1] = 0
    scores = unit_scores(group.query, group.table, group.plan)
    torch.testing.assert_close(scores[0].double(), group.oracle()[0], atol=2e-5, rtol=2e-5)
    assert scores[1].eq(-torch.inf).all()


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("dim", [24, 256])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("written", [("bounds", "mean"), ("bounds",), ("mean",)], ids=str)
def test_summaries(page_size, dim, layout, written):
    num_pages, heads = 5, 2
    cache = torch.full((num_pages, page_size, heads, dim), torch.nan, dtype=torch.float16)
    if layout == "HND":
        cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
    pages, filled = torch.tensor([3, -1, 0, 4]), torch.randint(1, page_size + 1, (4,))
    for page, count in zip(pages.tolist(), filled.tolist(), strict=True):
        if page >= 0:
            cache[page, :count] = torch.randn(count, heads, dim)
    shapes = {"bounds": (num_pages, 1, heads, 2 * dim), "mean": (num_pages, 1, heads, dim)}
    made, expected = (
        {name: torch.full(shapes[name], 7.0, dtype=cache.dtype) for name in written} for _ in range(2)
    )
    summarise_pages(cache, pages, filled, **made)
    summary_reference.summarise_pages(cache, pages, filled, expected.get("bounds"), expected.get("mean"))
    if "bounds" in written:
        assert made["bounds"].equal(expected["bounds"])
    if "mean" in written:
        torch.testing.assert_close(made["mean"], expected["mean"], atol=1e-3, rtol=1e-3)


def test_bounds_narrower_than_their_keys(scored_group):
    cache = torch.randn(5, 16, 2, 32)
    pages, filled = torch.arange(5), torch.tensor([16, 1, 3, 16, 7])
    made, expected = (torch.zeros(5, 1, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    summarise_pages(cache, pages, filled, bounds=made)
    summary_reference.summarise_pages(cache, pages, filled, expected, None)
    assert made.equal(expected)
    group = scored_group(LENS)
    group.table = group.table.bfloat16()
    group.rows = [rows.bfloat16() for rows in group.rows]
    check(group)


def test_no_pages():
    none = torch.zeros(0, dtype=torch.int64)
    summarise_pages(torch.zeros(2, 4, 1, 8), none, none, mean=torch.zeros(2, 1, 1, 8))


def test_a_pool_beyond_two_to_the_31_elements():
    """Page 2 begins 2^31 elements in: page numbers must be widened before they are multiplied."""
    page_stride, shape = 2**30, (3, 16, 1, 32)
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, not named before Python 3.13: only touched pages take memory
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, 2 * (2 * page_stride + 16 * 32), flags=flags)
    cache = torch.frombuffer(memory, dtype=torch.float16).as_strided(shape, (page_stride, 32, 32, 1))
    cache[2] = torch.randn(16, 1, 32)
    mean, query = torch.zeros(3, 1, 1, 32).half(), torch.randn(1, 2, 32).half()
    summarise_pages(cache, torch.tensor([2]), torch.tensor([16]), mean=mean)
    torch.testing.assert_close(mean[2, 0], cache[2].float().mean(0).half(), atol=1e-3, rtol=1e-3)
    scores = unit_scores(query, cache, plan([1], [16], [[2]], 16, "cpu"))
    torch.testing.assert_close(scores[0], query[0].float() @ cache[2, :, 0].float().T, atol=1e-3, rtol=1e-3)
