"""The reference of listed_scores against an fp64 oracle, over caches that show only what is listed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels.listed_scores import listed_scores
from headway.kernels.paged_attention import plan
from headway.kernels.unit_scores import unit_scores

from .listings import check, run
from .selections import make_selections

PAGE = 16
LENGTHS = [1, 40, PAGE, PAGE - 1, PAGE + 1, 3 * PAGE + 7]
KINDS = {
    "max": {},
    "negative": {"scale": -0.5},
    "softcap": {"softcap": 1.5},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_lists", [1, 2])
@pytest.mark.parametrize("unit", [1, 4, PAGE])
def test_ragged_batch(unit, num_lists, kind):
    check(make_selections(LENGTHS, unit, num_lists), **KINDS[kind])


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 7])
@pytest.mark.parametrize("num_lists", [1, 2])
@pytest.mark.parametrize("unit", [1, 4, PAGE])
def test_one_sequence_with_full_lists(unit, num_lists, length):
    check(make_selections([length], unit, num_lists, width=3, fill="most"))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (7, 1), (2, 2), (8, 2), (5, 1), (8, 1)], ids=str)
@pytest.mark.parametrize("dim", [24, 33, 64, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_head_sizes(heads, dim, kind):
    for num_lists in {1, heads[1]}:
        for layout in ("NHD", "HND"):
            case = make_selections([30, 37], 4, num_lists, heads=heads, dim=dim, layout=layout)
            check(case, **KINDS[kind])


@pytest.mark.parametrize("num_lists", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_head_first_cache_and_strided_query(num_lists, kind):
    check(make_selections(LENGTHS, 4, num_lists, layout="HND", strided_query=True), **KINDS[kind])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_other_dtypes_are_accumulated_in_fp32(dtype, layout):
    check(make_selections(LENGTHS, 4, dtype=dtype, layout=layout))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hostile_tables_and_lists(data):
    """Reading any cell that no list names shows as NaN."""
    page_size = data.draw(st.sampled_from([1, 3, 8, 64]), "page_size")
    unit = data.draw(st.sampled_from([u for u in range(1, page_size + 1) if page_size % u == 0]), "unit")
    heads = data.draw(st.sampled_from([(4, 2), (3, 3), (4, 1)]), "heads")
    kv_lens = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=4), "kv_lens")
    flags = st.none() | st.lists(st.booleans(), min_size=len(kv_lens), max_size=len(kv_lens))
    active = data.draw(flags, "active")
    torch.manual_seed(data.draw(st.integers(0, 2**31), "seed"))
    case = make_selections(
        kv_lens,
        unit,
        data.draw(st.sampled_from([1, heads[1]]), "num_lists"),
        data.draw(st.integers(1, 20), "width"),
        heads,
        dim=8,
        page_size=page_size,
        tables=data.draw(st.sampled_from(["shuffled", "reversed", "interleaved", "shared", "far"]), "tables"),
        fill=data.draw(st.sampled_from(["some", "most"]), "fill"),
    )
    kind = KINDS[data.draw(st.sampled_from(list(KINDS)), "kind")]
    check(case, active=None if active is None else torch.tensor(active), **kind)


@pytest.mark.parametrize("num_lists", [1, 2])
def test_everything_listed_scores_as_the_probe_over_keys(num_lists):
    case = make_selections(LENGTHS, 4, num_lists, fill="all")
    probe = unit_scores(case.query, case.key_cache, case.plan, scale=0.2, softcap=2.0, reduce="max")
    scores = run(case, scale=0.2, softcap=2.0)
    assert probe[:, :, scores.shape[2] :].isneginf().all()
    torch.testing.assert_close(scores, probe[:, :, : scores.shape[2]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_lists(kind):
    case = make_selections([20, 30], num_lists=2)
    case.lists = [[[], [3]], [[], []]]
    case.key_cache.fill_(torch.nan)
    case.expose()
    check(case, **KINDS[kind])
    case.lists = [[[], []], [[], []]]
    case.key_cache.fill_(torch.nan)
    check(case, **KINDS[kind])


@pytest.mark.parametrize("num_lists", [1, 2])
@pytest.mark.parametrize("rows", [[True, False, True], [False] * 3, [True] * 3], ids=str)
def test_inactive_rows(rows, num_lists):
    case = make_selections([20, 50, 33], 4, num_lists)
    active = torch.tensor(rows)
    case.query[~active] = torch.nan
    check(case, active=active)


def test_a_result_is_its_own():
    """What a later call copies must not show in it."""
    case = make_selections(LENGTHS, 4)
    first = run(case)
    kept = first.clone()
    check(make_selections(LENGTHS, 4, fill="most"))
    assert first.equal(kept)


def test_a_request_does_not_depend_on_its_neighbours():
    case = make_selections(LENGTHS, 4)
    together = run(case)
    for b, length in enumerate(LENGTHS):
        alone = plan([1], [length], [case.tables[b]], PAGE, "cpu")
        one = slice(b, b + 1)
        scores = listed_scores(case.query[one], case.key_cache, alone, case.indices[one], 4)
        torch.testing.assert_close(scores, together[one], atol=2e-6, rtol=1e-5)


QUERY, CACHE = torch.zeros(1, 4, 16), torch.zeros(2, 16, 2, 16)
GOOD = {
    "query": QUERY,
    "key_cache": CACHE,
    "plan": plan([1], [5], [[1]], 16, "cpu"),
    "indices": torch.zeros(1, 1, 1, dtype=torch.int32),
    "unit": 4,
}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"query": QUERY[..., :8]}, "query"),
        ({"query": QUERY[:, :3]}, "query"),
        ({"query": QUERY[:, :0]}, "query"),
        ({"query": QUERY.half()}, "dtype"),
        ({"query": QUERY.int(), "key_cache": CACHE.int()}, "dtype"),
        ({"query": QUERY.to("meta")}, "meta"),
        ({"query": QUERY.expand(2, 4, 16)}, "plan must be of 2"),
        ({"key_cache": CACHE[0]}, "key_cache"),
        ({"plan": plan([2], [5], [[0]], 16, "cpu")}, "plan"),
        ({"plan": plan([1], [5], [[0]], 8, "cpu")}, "plan is for pages of 8"),
        ({"plan": plan([1], [5], [[2]], 16, "cpu")}, "number 2"),
        ({"indices": torch.zeros(1, 1, 2)}, "indices"),
        ({"indices": torch.zeros(1, 4, 2, dtype=torch.int32)}, "indices"),
        ({"indices": torch.zeros(2, 1, 2, dtype=torch.int32)}, "indices"),
        ({"indices": torch.zeros(1, 1, 0, dtype=torch.int32)}, "indices"),
        ({"unit": 5}, "unit"),
        ({"unit": 0}, "unit"),
        ({"unit": 32}, "unit"),
        ({"softcap": 0.0}, "softcap"),
        ({"active": torch.ones(2, dtype=torch.bool)}, "active"),
        ({"active": torch.ones(1)}, "active"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refuses(change, names):
    listed_scores(**GOOD)
    with pytest.raises(ValueError, match=names):
        listed_scores(**{**GOOD, **change})
