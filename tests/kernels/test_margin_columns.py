"""margin_columns against an oracle in fp64 over the plain keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import dispatch
from headway.kernels.margin_columns import cpu, margin_columns
from headway.kernels.paged_attention import plan

from .margin_case import make_case


@pytest.fixture(params=["cpu", "cpu pieces", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        if request.param == "cpu pieces":
            patch.setattr(cpu, "SCORES", 1)
        yield


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    kv_len=st.integers(1, 700),
    heads=st.sampled_from([(4, 2), (3, 3), (7, 1)]),
    dim=st.sampled_from([1, 24, 80]),
    pages=st.sampled_from(["shuffled", "contiguous", "two-runs"]),
    layout=st.sampled_from(["NHD", "HND"]),
    page_size=st.sampled_from([1, 3, 16]),
    scale=st.sampled_from([1.0, 0.125, -0.5]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_a_key_is_kept_if_any_row_reaches_its_limit(rows, kv_len, seed, scale, data, **shape):
    torch.manual_seed(seed)
    start = data.draw(st.integers(0, kv_len), label="start")
    stop = data.draw(st.integers(start, kv_len), label="stop")
    make_case(rows, kv_len, **shape).check(start, stop, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_accumulated_in_fp32(dtype):
    make_case(5, 300, dim=80, dtype=dtype).check(7, 250, 0.2)


def test_limits_without_end():
    case = make_case(3, 90)
    for bound, every in ((-torch.inf, True), (torch.inf, False), (torch.nan, False)):
        case.limits.fill_(bound)
        assert margin_columns(case.query, case.limits, case.key_cache, case.plan, 5, 90).eq(every).all()


QUERY, LIMITS, CACHE = torch.zeros(3, 4, 8), torch.zeros(3, 4), torch.zeros(4, 4, 2, 8)
ONE = plan([2], [9], [[0, 3, 1]], 4, "cpu")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"key_cache": CACHE[0]}, "key_cache"),
        ({"query": QUERY[..., :7]}, "query must be"),
        ({"query": QUERY[:, :3]}, "3 heads"),
        ({"query": QUERY.half()}, "dtype"),
        ({"query": QUERY.to("meta")}, "meta"),
        ({"query": QUERY[:0], "limits": LIMITS[:0]}, "at least one row"),
        ({"limits": LIMITS[:2]}, "limits must be"),
        ({"limits": LIMITS.double()}, "limits must be"),
        ({"key_cache": CACHE[:3]}, "number 3"),
        ({"plan": plan([1, 2], [5, 3], [[0, 3], [1]], 4, "cpu")}, "one sequence"),
        ({"start": -1}, "start and stop"),
        ({"start": 6}, "start and stop"),
        ({"stop": 10}, "start and stop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(changed, names):
    arguments = {"query": QUERY, "limits": LIMITS, "key_cache": CACHE, "plan": ONE, "start": 2, "stop": 5}
    with pytest.raises(ValueError, match=names):
        margin_columns(**arguments | changed)
