"""listed_scores as a Triton kernel in the interpreter, over caches that show only what is listed."""

import mmap

import pytest
import torch

from headway.kernels.listed_scores import listed_scores
from headway.kernels.paged_attention import plan
from headway.kernels.unit_scores import gpu as probe
from tests.kernels.listings import check, run
from tests.kernels.selections import make_selections

PAGE = 16
LENGTHS = [1, PAGE, PAGE + 1, 4 * PAGE + 7]
KINDS = {
    "max": {"scale": 0.125},
    "softcap": {"softcap": 1.5},
    "active": {"active": torch.tensor([True, False, False, True])},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("unit", "num_lists"), [(1, 1), (1, 2), (4, 2), (PAGE, 1), (PAGE, 2)])
def test_ragged_batch(unit, num_lists, kind):
    check(make_selections(LENGTHS, unit, num_lists, width=64 // unit), atol=3e-5, **KINDS[kind])


@pytest.mark.parametrize(
    ("heads", "dim"), [((4, 4), 1), ((6, 2), 80), ((7, 1), 96), ((20, 1), 192), ((71, 1), 32)], ids=str
)
@pytest.mark.parametrize("kind", ["max", "softcap"])
def test_heads_and_head_sizes(heads, dim, kind):
    for num_lists in {1, heads[1]}:
        check(make_selections([37, 30], 4, num_lists, heads=heads, dim=dim), atol=3e-5, **KINDS[kind])


@pytest.mark.parametrize("tables", ["shuffled", "reversed", "interleaved", "shared", "far"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_tables_and_layouts(tables, layout):
    case = make_selections(
        LENGTHS, 2, page_size=8, tables=tables, layout=layout, strided_query=True, dtype=torch.float16
    )
    check(case)


@pytest.mark.parametrize("listed", [probe.BLOCK_N - 1, probe.BLOCK_N, probe.BLOCK_N + 1, 3 * probe.BLOCK_N])
def test_lists_around_a_tile(listed):
    """The first list is full, the second leaves whole tiles to padding."""
    case = make_selections([4 * probe.BLOCK_N, 5], 1, width=listed, fill="most")
    check(case)
    case.lists[1] = [[], []]
    check(case)


def test_a_padded_row_of_a_captured_graph():
    case = make_selections([40, 30], 4, fill="most")
    expected = run(case)
    case.plan.kv_lens[1] = 0
    scores = run(case)
    assert scores[0].equal(expected[0])
    assert scores[1].isneginf().all()


def test_a_pool_beyond_two_to_the_31_elements():
    """Page 2 begins 2^31 elements in: page numbers must be widened before they are multiplied."""
    page_stride, shape = 2**30, (3, 16, 1, 32)
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, not named before Python 3.13: only touched pages take memory
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, 2 * (2 * page_stride + 16 * 32), flags=flags)
    cache = torch.frombuffer(memory, dtype=torch.float16).as_strided(shape, (page_stride, 32, 32, 1))
    cache[2] = torch.randn(16, 1, 32)
    query, one_page = torch.randn(1, 2, 32).half(), plan([1], [16], [[2]], 16, "cpu")
    scores = listed_scores(query, cache, one_page, torch.tensor([[[1, 3]]], dtype=torch.int32), 4)
    keys = torch.cat((cache[2, 4:8, 0], cache[2, 12:, 0])).float()
    torch.testing.assert_close(scores[0, 0], (query[0].float() @ keys.T).amax(0), atol=1e-3, rtol=1e-3)
