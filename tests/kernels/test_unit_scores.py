"""unit_scores against an oracle in fp64, over every shape of table and batch."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import cpu_scores, dispatch
from headway.kernels.cpu_workers import share_out
from headway.kernels.page_summary import summarise_pages
from headway.kernels.paged_attention import plan
from headway.kernels.unit_scores import bound_query, unit_scores

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


def in_thirds(work, items):
    """share_out on one thread; the last part first."""
    edges = [len(items) * third // 3 for third in range(4)]
    for part in (2, 1, 0):
        work(items[edges[part] : edges[part + 1]])


@pytest.fixture(params=["cpu", "cpu parts", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        if request.param == "cpu parts":
            patch.setattr(cpu_scores, "SHARED_NUMBERS", 0)
            patch.setattr(cpu_scores, "share_out", in_thirds)
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


@pytest.mark.parametrize("reduce", ["none", "max", "mean"])
def test_a_table_may_be_narrower_than_the_query(reduce):
    group = make_group([70, 1, 33], dim=80)
    group.table, group.rows = group.table.bfloat16(), [rows.bfloat16() for rows in group.rows]
    check(group, reduce=reduce)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (3, 1), (8, 2), (5, 1), (16, 2)], ids=str)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_groups_and_odd_head_sizes(layout, heads, dtype):
    for dim, reduce in product((24, 33), ("none", "max", "mean")):
        shape = {"kv_lens": [20, 37], "heads": heads, "dim": dim, "layout": layout, "dtype": dtype}
        check(make_group(**shape), reduce=reduce)
        check(make_group(**shape), reduce=reduce, softcap=1.5, scale=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (4, 1), (7, 1)], ids=str)
@pytest.mark.parametrize("reduce", ["none", "max", "mean"])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_nan_shows(softcap, reduce, heads, dtype):
    """Without this, no test would see a cell read that holds nothing."""
    group = make_group([37], heads=heads, dim=24, dtype=dtype)
    for unit in (3, 36):
        group.table[group.plan.host_tables[0][unit // 16], unit % 16] = torch.nan
    scores = unit_scores(group.query, group.table, group.plan, reduce=reduce, softcap=softcap)
    assert scores.isnan().nonzero()[:, 2].unique().tolist() == [3, 36]
    assert scores[:, :, [3, 36]].isnan().all()


@pytest.mark.parametrize("pages", ["shuffled", "two-runs"])
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (256, 256), (64, 4), (8, 1)], ids=str)
@pytest.mark.parametrize("kv_lens", [[1500], [700, 3, 900]], ids=str)
def test_long_sequences(kv_lens, size, pages):
    for reduce in ("max", "mean"):
        check(make_group(kv_lens, page_size=size[0], units=size[1], dim=24, pages=pages), reduce=reduce)


def test_many_sequences():
    check(make_group(torch.randint(1, 100, (150,)).tolist(), dim=24, units=4), reduce="max")


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
    narrower=st.booleans(),
    seed=seeds,
)
def test_quests_bound_holds_for_every_key(kv_lens, heads, spread, narrower, seed):
    torch.manual_seed(seed)
    group = make_group(kv_lens, heads=heads)
    group.table.mul_(spread)
    num_pages, page_size, num_kv_heads, dim = group.table.shape
    dtype = torch.bfloat16 if narrower else torch.float32
    bounds = torch.full((num_pages, 1, num_kv_heads, 2 * dim), torch.nan, dtype=dtype)
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
    if not narrower:
        torch.testing.assert_close(
            best[one_key], bound[one_key], atol=1e-4, rtol=1e-4
        )  # and then it is tight


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
@pytest.mark.parametrize("reduce", ["none", "max", "mean"])
@pytest.mark.parametrize("pages", ["contiguous", "shuffled", "two-runs"])
def test_pages_are_shared_by_threads(monkeypatch, pages, reduce):
    monkeypatch.setattr(cpu_scores, "SHARED_NUMBERS", 0)
    monkeypatch.setattr(cpu_scores, "share_out", share_out)
    for kv_lens in ([1, 40, 150], [400], [10]):
        for heads in ((3, 3), (8, 2)):
            shape = {"kv_lens": kv_lens, "heads": heads, "dim": 32, "pages": pages, "layout": "NHD"}
            check(make_group(**shape, page_size=16, units=4), scale=0.3, reduce=reduce)


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
