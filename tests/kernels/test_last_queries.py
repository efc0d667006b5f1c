"""last_queries against an oracle in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import dispatch
from headway.kernels.last_queries import cpu, last_queries
from headway.kernels.paged_attention import plan

from .conftest import make_batch
from .last_rows import check


@pytest.fixture(params=["cpu", "cpu blocks", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        if request.param == "cpu blocks":  # so small that a short sequence has blocks, and its rows parts
            patch.setattr(cpu, "BLOCK", 16)
            patch.setattr(cpu, "SCRATCH", 300)
        yield


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 20),
    more=st.sampled_from([0, 1, 7, 45, 120]),
    heads=st.sampled_from([(4, 2), (3, 3), (5, 1)]),
    page_size=st.sampled_from([1, 5, 16]),
    pages=st.sampled_from(["shuffled", "contiguous", "two-runs"]),
    layout=st.sampled_from(["NHD", "HND"]),
    softcap=st.sampled_from([None, 0.7]),
    has_sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sums(rows, more, heads, page_size, pages, layout, softcap, has_sinks, seed):
    torch.manual_seed(seed)
    shape = {"heads": heads, "dim": 24, "page_size": page_size, "pages": pages, "layout": layout}
    batch = make_batch([(rows + min(more, 3), rows + more)], **shape, strided_query=has_sinks)
    sinks = torch.randn(heads[0]) if has_sinks else None
    check(last_queries, batch, rows, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("length", [2047, 2048, 2049])
def test_lengths_around_a_block(length):
    check(last_queries, make_batch([(7, length)], heads=(2, 1)), 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_accumulated_in_fp32(dtype):
    check(last_queries, make_batch([(9, 50)], dtype=dtype), 9)


def test_a_latent_key_cache():
    check(last_queries, make_batch([(5, 40)], heads=(4, 1), dim=48, value_dim=32, latent=True), 5)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e18])
def test_hostile_scores_lose_no_mass(size):
    batch = make_batch([(8, 100)])
    batch.key_cache.mul_(size)
    for sums in last_queries(batch.query[-8:], batch.key_cache, batch.plan, scale=1.0):
        torch.testing.assert_close(sums.sum(1), torch.full((4,), 8.0))


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 400.0])
@pytest.mark.parametrize("far", [60.0, 90.0, 300.0])
def test_rows_of_far_apart_levels(far, softcap, has_sinks):
    """Scores of whose powers fp32 has some, and others that it has none of, high ones and low ones."""
    batch = make_batch([(9, 70)], heads=(4, 2))
    batch.query[..., -1] = torch.linspace(-far, far, 36).view(9, 4) / 0.2
    batch.key_cache[..., -1] = 1.0
    for keys in batch.keys:
        keys[..., -1] = 1.0
    sinks = torch.tensor([-far, 0.0, 1.0, far]) if has_sinks else None
    check(last_queries, batch, 9, atol=1e-4, softcap=softcap, sinks=sinks)


QUERY, CACHE = torch.zeros(3, 4, 8), torch.zeros(4, 4, 2, 8)
ONE = plan([3], [9], [[0, 3, 1]], 4, "cpu")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"key_cache": CACHE[0]}, "key_cache"),
        ({"query": QUERY[..., :7]}, "query must be"),
        ({"query": QUERY[:, :3]}, "3 heads"),
        ({"query": QUERY.half()}, "dtype"),
        ({"query": QUERY.to("meta")}, "meta"),
        ({"query": QUERY[:0]}, "1 to 3 rows"),
        ({"query": QUERY.repeat(2, 1, 1)}, "1 to 3 rows"),
        ({"plan": plan([2, 1], [5, 3], [[0, 3], [1]], 4, "cpu")}, "one sequence"),
        ({"plan": plan([3], [9], [[0, 3, 1]], 8, "cpu")}, "pages of 8"),
        ({"softcap": 0.0}, "softcap"),
        ({"sinks": torch.zeros(3)}, "sinks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(changed, names):
    arguments = {"query": QUERY, "key_cache": CACHE, "plan": ONE, "scale": 1.0} | changed
    with pytest.raises(ValueError, match=names):
        last_queries(**arguments)
