"""antidiagonal_mass against an oracle in fp64 that knows no pages and forms every product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import dispatch
from headway.kernels.antidiagonal import antidiagonal_mass, cpu
from headway.kernels.paged_attention import plan

from .antidiagonals import check, oracle
from .conftest import make_batch

shapes = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([(4, 2), (3, 3), (5, 1)]),
        "dim": st.sampled_from([1, 24, 32]),
        "page_size": st.sampled_from([1, 3, 8, 16]),
        "pages": st.sampled_from(["shuffled", "contiguous", "two-runs"]),
        "layout": st.sampled_from(["NHD", "HND"]),
        "strided_query": st.booleans(),
    }
)


@pytest.fixture(params=["cpu", "cpu pieces", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        if request.param == "cpu pieces":
            patch.setattr(cpu, "PIECE_NUMBERS", 1)
        yield


@settings(deadline=None, max_examples=60)
@given(
    shape=shapes,
    size=st.sampled_from([(16, 1), (16, 4), (16, 16), (12, 3), (1, 1), (24, 8)]),
    blocks_before=st.integers(0, 3),
    tokens=st.integers(1, 60),
    softcap=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 2**31),
)
def test_masses(shape, size, blocks_before, tokens, softcap, seed):
    torch.manual_seed(seed)
    before = blocks_before * size[0]
    check(make_batch([(tokens, before + tokens)], **shape), *size, softcap=softcap)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 3 * 16 + 7])
@pytest.mark.parametrize("stride", [1, 4, 16])
def test_lengths_around_a_block(tokens, stride):
    check(make_batch([(tokens, tokens)]), 16, stride)
    check(make_batch([(tokens, 32 + tokens)]), 16, stride)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_accumulated_in_fp32(dtype):
    check(make_batch([(40, 72)], dtype=dtype, dim=80), 16, 4)
    check(make_batch([(40, 72)], dtype=dtype, pages="contiguous"), 16, 4)


def test_rows_sum_to_one_and_the_future_has_nothing():
    batch = make_batch([(50, 114)])
    mass = antidiagonal_mass(batch.query, batch.key_cache, batch.plan, 16, 4, scale=0.2)
    torch.testing.assert_close(mass.sum(-1), torch.ones(4, 4))
    block = torch.arange(8)
    assert mass[:, block > torch.arange(4, 8).unsqueeze(1)].eq(0).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 100.0, -100.0])
def test_hostile_scores_give_masses(value):
    batch = make_batch([(37, 69)])
    batch.key_cache[~batch.key_cache.isnan()] = value
    batch.query.fill_(100.0)
    mass = antidiagonal_mass(batch.query, batch.key_cache, batch.plan, 16, 4, scale=1.0)
    assert mass.isfinite().all()
    torch.testing.assert_close(mass.sum(-1), torch.ones(4, 3))


def test_a_stride_of_one_is_exact_attention():
    batch = make_batch([(16, 48)], heads=(2, 1))
    mass = antidiagonal_mass(batch.query, batch.key_cache, batch.plan, 16, 1, scale=0.2)
    for head in range(2):
        scores = batch.query[:, head] @ batch.keys[0][:, 0].T * 0.2
        later = torch.arange(48) > torch.arange(32, 48).unsqueeze(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        torch.testing.assert_close(mass[head, 0], weights.mean(0).view(3, 16).sum(1))


def test_chunks_agree_with_the_whole():
    whole = make_batch([(70, 70)])
    mass = oracle(whole, 16, 4, 0.2)
    for start, stop in ((0, 32), (32, 48), (48, 70)):
        part = plan([stop - start], [stop], whole.plan.host_tables, 16, "cpu")
        found = antidiagonal_mass(whole.query[start:stop], whole.key_cache, part, 16, 4, scale=0.2)
        rows = mass[:, start // 16 : -(-stop // 16), : -(-stop // 16)]
        torch.testing.assert_close(found.double(), rows, atol=2e-5, rtol=2e-5)


QUERY, KEYS, PLAN = torch.zeros(5, 4, 8), torch.zeros(4, 4, 2, 8), plan([5], [13], [[0, 3, 1, 2]], 4, "cpu")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"key_cache": KEYS[0]}, "key_cache must be"),
        ({"query": QUERY[..., :7]}, "query must be"),
        ({"query": QUERY[:, :3]}, "3 heads"),
        ({"query": QUERY.half()}, "dtype"),
        ({"query": QUERY.to("meta")}, "meta"),
        ({"query": QUERY[:4]}, "one sequence with 4"),
        ({"plan": plan([4, 1], [13, 1], [[0, 3, 1, 2], [0]], 4, "cpu")}, "one sequence with 5"),
        ({"key_cache": KEYS[:3]}, "number 3"),
        ({"softcap": 0.0}, "softcap"),
        ({"stride": 3}, "multiple of stride = 3, not 4"),
        ({"stride": 0}, "multiple of stride = 0"),
        ({"block": 0}, "not 0"),
        ({"block": 16}, "not from 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(changed, names):
    arguments = {"query": QUERY, "key_cache": KEYS, "plan": PLAN, "block": 4, "stride": 2, "scale": 1.0}
    with pytest.raises(ValueError, match=names):
        antidiagonal_mass(**(arguments | changed))
