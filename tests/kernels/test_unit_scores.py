"""unit_scores against an oracle in fp64, over every shape of table and batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import dispatch
from headway.kernels.page_summary import summarise_pages
from headway.kernels.paged_attention import plan
from headway.kernels.unit_scores import bound_query, cpu, cpu_schedule, unit_scores

from .scored_group import make_group

PAGE_SIZES_AND_UNITS = [(16, 16), (16, 1), (16, 4), (3, 3), (3, 1), (1, 1), (64, 64), (64, 2)]
groups = st.fixed_dictionaries(
    {
        "kv_lens": st.lists(st.integers(1, 150), min_size=1, max_size=6),
        "heads": st.sampled_from([(4, 2), (3, 3), (7, 1), (8, 2)]),
        "dim": st.sampled_from([1, 24, 32, 80]),
        "pages": st.sampled_from(["shuffled", "contiguous", "reversed", "two-runs"]),
        "layout": st.sampled_from(["NHD", "HND", "view"]),
    }
)
kinds = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([1.0, 0.125, -0.5]),
        "softcap": st.sampled_from([None, 1.5]),
        "reduce": st.sampled_from(["none", "max", "mean"]),
    }
)
seeds = st.integers(0, 2**31)


@pytest.fixture(params=["cpu", "cpu pieces", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        if request.param == "cpu pieces":  # limits so low that a short row has runs in place and tiles
            patch.setattr(cpu_schedule, "SHORT_BYTES", 0)
            patch.setattr(cpu_schedule, "DIRECT_BYTES", 3 * 4096)
            patch.setattr(cpu_schedule, "TILE_BYTES", 2 * 4096)
            patch.setattr(cpu, "LARGE", 0)
        yield


def check(group, atol=2e-5, **kind):
    scores = unit_scores(group.query, group.table, group.plan, **kind)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), group.oracle(**kind), atol=atol, rtol=atol)


@settings(deadline=None, max_examples=60)
@given(shape=groups, size=st.sampled_from(PAGE_SIZES_AND_UNITS), kind=kinds, seed=seeds, data=st.data())
def test_scores(shape, size, kind, seed, data):
    torch.manual_seed(seed)
    page_size, units = size
    batch = len(shape["kv_lens"])
    flags = data.draw(st.none() | st.lists(st.booleans(), min_size=batch, max_size=batch), label="active")
    active = None if flags is None else torch.tensor(flags)
    check(make_group(**shape, page_size=page_size, units=units), **kind, active=active)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduce", ["none", "max", "mean"])
def test_other_dtypes_are_accumulated_in_fp32(dtype, reduce):
    check(make_group([70, 1, 33], dtype=dtype, dim=80), reduce=reduce)
    check(make_group([100], dtype=dtype, pages="contiguous"), reduce=reduce)


@settings(deadline=None, max_examples=60)
@given(
    shape=groups, seed=seeds, reduce=st.sampled_from(["max", "mean"]), softcap=st.sampled_from([None, 2.0])
)
def test_reduce_is_what_one_would_do_by_hand(shape, seed, reduce, softcap):
    torch.manual_seed(seed)
    group = make_group(**shape)
    every = unit_scores(group.query, group.table, group.plan, softcap=softcap)
    by_head = every.unflatten(1, (group.table.shape[2], -1))
    expected = by_head.amax(2) if reduce == "max" else by_head.mean(2)
    reduced = unit_scores(group.query, group.table, group.plan, softcap=softcap, reduce=reduce)
    torch.testing.assert_close(reduced, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    kv_lens=st.lists(st.integers(1, 100), min_size=1, max_size=4),
    heads=st.sampled_from([(4, 2), (2, 2), (5, 1)]),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    seed=seeds,
)
def test_quests_bound_holds_for_every_key(kv_lens, heads, spread, seed):
    torch.manual_seed(seed)
    group = make_group(kv_lens, heads=heads)
    group.table.mul_(spread)
    num_pages, page_size, num_kv_heads, dim = group.table.shape
    bounds = torch.full((num_pages, 1, num_kv_heads, 2 * dim), torch.nan)
    for kv_len, pages in zip(group.plan.host_kv_lens, group.plan.host_tables, strict=True):
        filled = torch.full((len(pages),), page_size)
        filled[-1] = kv_len - (len(pages) - 1) * page_size
        summarise_pages(group.table, torch.from_numpy(pages), filled, bounds=bounds)
    bound = unit_scores(bound_query(group.query), bounds, group.plan)
    exact = unit_scores(group.query, group.table, group.plan)
    best = exact.unflatten(2, (-1, page_size)).amax(3)
    slack = 1e-5 * group.query.abs().sum(-1, keepdim=True) * spread
    assert (best <= bound + slack).all()
    one_key = torch.tensor(kv_lens) == 1
    torch.testing.assert_close(best[one_key], bound[one_key], atol=1e-4, rtol=1e-4)  # and then it is tight


def test_a_row_does_not_depend_on_its_neighbours():
    together = make_group([90, 40, 65, 90])
    scores = unit_scores(together.query, together.table, together.plan)
    for b, (kv_len, pages) in enumerate(
        zip(together.plan.host_kv_lens, together.plan.host_tables, strict=True)
    ):
        alone = unit_scores(
            together.query[b : b + 1], together.table, plan([1], [kv_len], [pages], 16, "cpu")
        )
        torch.testing.assert_close(scores[b, :, :kv_len], alone[0, :, :kv_len], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("pages", ["contiguous", "shuffled", "two-runs"])
def test_one_row_of_queries_is_shared_by_threads(monkeypatch, pages):
    monkeypatch.setattr(cpu, "LARGE", 0)
    shape = {"kv_lens": [1, 40, 150], "heads": (3, 3), "dim": 32, "pages": pages, "layout": "NHD"}
    check(make_group(**shape, page_size=16, units=4), scale=0.3)


def test_two_tables_of_one_plan():
    """What a layer keeps in the plan must not serve a table of another shape or layout."""
    group = make_group([90, 40], dim=32)
    check(group)
    for other in (
        group.table[..., ::2],
        group.table[:, :, :1],
        group.table[:, :1],
        group.table.transpose(1, 2).contiguous().transpose(1, 2),
        group.table.double(),
    ):
        query = group.query[..., : other.shape[3]].to(other.dtype)
        fresh = plan([1, 1], [90, 40], group.plan.host_tables, 16, "cpu")
        again = unit_scores(query, other, group.plan)
        torch.testing.assert_close(again, unit_scores(query, other, fresh), atol=1e-5, rtol=1e-5)


def test_sequences_that_share_pages():
    table = torch.randn(6, 4, 2, 8)
    query = torch.randn(2, 2, 8)
    shared = plan([1, 1], [16, 10], [[5, 0, 3, 2], [5, 0, 1]], 4, "cpu")
    scores = unit_scores(query, table, shared)
    torch.testing.assert_close(scores[0, :, :8] - scores[1, :, :8], torch.einsum(
        "hd,nhd->hn", query[0] - query[1], table[[5, 0]].flatten(0, 1)
    ), atol=1e-5, rtol=1e-5)  # fmt: skip


QUERY, TABLE = torch.zeros(2, 4, 8), torch.zeros(4, 4, 2, 8)
DECODES = plan([1, 1], [5, 3], [[0, 3], [1]], 4, "cpu")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"table": TABLE[0]}, "table must be"),
        ({"query": QUERY[..., :7]}, "query must be"),
        ({"query": QUERY[:, :3]}, "3 heads"),
        ({"query": QUERY[:, :0]}, "0 heads"),
        ({"query": QUERY.half()}, "dtype"),
        ({"query": QUERY.int(), "table": TABLE.int()}, "dtype"),
        ({"query": QUERY.to("meta")}, "meta"),
        ({"query": QUERY[:1]}, "1 rows"),
        ({"plan": plan([1, 2], [5, 3], [[0, 3], [1]], 4, "cpu")}, "one query per sequence"),
        ({"table": TABLE[:, :3]}, "3 units"),
        ({"table": TABLE[:, :0]}, "0 units"),
        ({"table": TABLE[:3]}, "number 3"),
        ({"softcap": 0.0}, "softcap"),
        ({"reduce": "sum"}, "reduce"),
        ({"active": torch.ones(2)}, "active"),
        ({"active": torch.ones(3, dtype=torch.bool)}, "active"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(changed, names):
    arguments = {"query": QUERY, "table": TABLE, "plan": DECODES} | changed
    with pytest.raises(ValueError, match=names):
        unit_scores(**arguments)
