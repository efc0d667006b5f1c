"""selected_attention and its reference against an fp64 oracle, over caches that show only what was chosen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import cpu_splits, dispatch
from headway.kernels.paged_attention import paged_attention, plan
from headway.kernels.selected_attention import selected_attention
from tests.kernels.selections import make_selections

PAGE = 16
LENGTHS = [1, 40, PAGE, PAGE - 1, PAGE + 1, 3 * PAGE + 7]
KINDS = {"plain": {}, "softcap": {"softcap": 1.5}, "sinks": {"sinks": True}}
KINDS["all"] = KINDS["softcap"] | KINDS["sinks"]


@pytest.fixture(params=["cpu", "reference"])
def version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")
    return request.param


def kind_of(name, heads=4):
    kind = dict(KINDS[name])
    if "sinks" in kind:
        kind["sinks"] = torch.randn(heads)
    return kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_lists", [1, 2, 4])
@pytest.mark.parametrize("unit", [1, 4, PAGE])
@pytest.mark.usefixtures("version")
def test_ragged_batch(unit, num_lists, kind):
    make_selections(LENGTHS, unit, num_lists).check(**kind_of(kind))


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 7])
@pytest.mark.parametrize("num_lists", [1, 2])
@pytest.mark.parametrize("unit", [1, 4, PAGE])
@pytest.mark.usefixtures("version")
def test_one_sequence_with_full_lists(unit, num_lists, length):
    """What a decode of one request is; no padding, so nothing is masked."""
    make_selections([length], unit, num_lists, width=3, fill="most").check()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (7, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("dim", [20, 24, 64, 256])
@pytest.mark.usefixtures("version")
def test_heads_and_head_sizes(heads, dim):
    for num_lists in {1, *heads}:
        make_selections([30, 37], 4, num_lists, heads=heads, dim=dim).check(scale=dim**-0.5)


@pytest.mark.parametrize("latent", [True, False], ids=["latent", "two-caches"])
@pytest.mark.parametrize("num_lists", [1, 4])
@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.usefixtures("version")
def test_values_of_another_head_size(kind, num_lists, latent):
    case = make_selections(LENGTHS, 4, num_lists, heads=(4, 1), dim=48, value_dim=32, latent=latent)
    case.check(**kind_of(kind))


@pytest.mark.parametrize("num_lists", [1, 2, 4])
@pytest.mark.parametrize("unit", [1, PAGE])
@pytest.mark.usefixtures("version")
def test_head_first_cache_and_strided_query(unit, num_lists):
    make_selections(LENGTHS, unit, num_lists, layout="HND", strided_query=True).check()


@pytest.mark.parametrize("num_lists", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("version")
def test_half_precision(dtype, num_lists):
    make_selections(LENGTHS, 4, num_lists, dtype=dtype).check(atol=2e-2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hostile_tables_and_lists(data):
    """Reading any cell that no list names shows as NaN."""
    page_size = data.draw(st.sampled_from([1, 3, 8, 64]), "page_size")
    unit = data.draw(st.sampled_from([u for u in range(1, page_size + 1) if page_size % u == 0]), "unit")
    heads = data.draw(st.sampled_from([(4, 2), (3, 3), (4, 1)]), "heads")
    torch.manual_seed(data.draw(st.integers(0, 2**31), "seed"))
    make_selections(
        data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=4), "kv_lens"),
        unit,
        data.draw(st.sampled_from([1, *heads]), "num_lists"),
        data.draw(st.integers(1, 20), "width"),
        heads,
        dim=8,
        page_size=page_size,
        tables=data.draw(st.sampled_from(["shuffled", "reversed", "interleaved", "shared", "far"]), "tables"),
        fill=data.draw(st.sampled_from(["some", "most"]), "fill"),
    ).check()


@pytest.mark.parametrize("num_lists", [1, 2, 4])
@pytest.mark.parametrize("unit", [1, 4, PAGE])
@pytest.mark.usefixtures("version")
def test_everything_chosen_is_dense(unit, num_lists):
    case = make_selections(LENGTHS, unit, num_lists, fill="all")
    kind = kind_of("all")
    dense = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2, **kind)
    for one, other in zip(case.run(**kind), dense, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["plain", "sinks"])
@pytest.mark.usefixtures("version")
def test_empty_lists(kind):
    case = make_selections([20, 30], num_lists=2)
    case.lists = [[[], [3]], [[], []]]
    case.key_cache.fill_(torch.nan)
    case.value_cache.fill_(torch.nan)
    case.expose()
    case.check(**kind_of(kind))
    case.lists = [[[], []], [[], []]]
    case.check(**kind_of(kind))


@pytest.mark.parametrize("num_lists", [1, 2, 4])
@pytest.mark.usefixtures("version")
def test_empty_lists_of_one_sequence(num_lists):
    case = make_selections([20], num_lists=num_lists)
    case.lists = [[[] for _ in range(num_lists)]]
    case.key_cache.fill_(torch.nan)
    case.check()


@pytest.mark.parametrize("num_lists", [1, 4])
@pytest.mark.parametrize("rows", [[True, False, True], [False] * 3, [True] * 3], ids=str)
@pytest.mark.usefixtures("version")
def test_inactive_rows_keep_what_they_hold(rows, num_lists):
    case = make_selections([20, 50, 33], 4, num_lists)
    active = torch.tensor(rows)
    case.query[~active] = torch.nan
    out, lse = torch.full((3, 8, 32), 7.0)[:, ::2], torch.full((3, 8), 7.0)[:, ::2]
    kind = kind_of("sinks")
    returned = case.run(active=active, out=out, lse=lse, **kind)
    assert returned[0] is out
    assert returned[1] is lse
    for written, expected in zip((out, lse), case.oracle(0.2, **kind), strict=True):
        torch.testing.assert_close(written[active].double(), expected[active], atol=2e-5, rtol=2e-4)
        assert (written[~active] == 7.0).all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("num_lists", [1, 2])
def test_lists_split_over_threads(monkeypatch, num_lists):
    monkeypatch.setattr(cpu_splits, "SHARED_NUMBERS", 1)
    case = make_selections([90, 70, 80, 100, 30], 1, num_lists, fill="most")
    case.check()
    with torch.inference_mode():
        case.check()
    case.lists[3][-1][-1] = 100
    with pytest.raises(ValueError, match=r"indices\[3\] names unit 100"):
        case.run()


def test_a_request_does_not_depend_on_its_neighbours():
    case = make_selections(LENGTHS, 4)
    together, _ = case.run()
    for b, length in enumerate(LENGTHS):
        alone = plan([1], [length], [case.tables[b]], PAGE, "cpu")
        out, _ = selected_attention(
            case.query[b : b + 1],
            case.key_cache,
            case.value_cache,
            alone,
            case.indices[b : b + 1],
            4,
            scale=0.2,
        )
        torch.testing.assert_close(out, together[b : b + 1], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("unit", "beyond"), [(1, 21), (4, 6), (PAGE, 2)])
def test_a_unit_beyond_the_sequence_is_refused(unit, beyond):
    case = make_selections([50, 21], unit, fill="most")
    case.lists[1][1][-1] = beyond
    with pytest.raises(ValueError, match=rf"indices\[1\] names unit {beyond}"):
        case.run()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"query": torch.zeros(1, 4, 8)}, "query"),
        ({"query": torch.zeros(2, 4, 16)}, "plan"),
        ({"query": torch.zeros(1, 3, 16)}, "query"),
        ({"query": torch.zeros(1, 4, 16, dtype=torch.float16)}, "dtype"),
        ({"value_cache": torch.zeros(2, 16, 1, 16)}, "value_cache"),
        ({"key_cache": torch.zeros(2, 16, 16)}, "key_cache"),
        ({"plan": plan([2], [5], [[0]], 16, "cpu")}, "plan"),
        ({"plan": plan([1], [5], [[0]], 8, "cpu")}, "plan"),
        ({"plan": plan([1], [5], [[2]], 16, "cpu")}, "plan"),
        ({"indices": torch.zeros(1, 1, 2)}, "indices"),
        ({"indices": torch.zeros(1, 3, 2, dtype=torch.int32)}, "indices"),
        ({"indices": torch.zeros(2, 1, 2, dtype=torch.int32)}, "indices"),
        ({"indices": torch.zeros(1, 1, 0, dtype=torch.int32)}, "indices"),
        ({"unit": 5}, "unit"),
        ({"unit": 0}, "unit"),
        ({"unit": 32}, "unit"),
        ({"softcap": 0.0}, "softcap"),
        ({"sinks": torch.zeros(2)}, "sinks"),
        ({"active": torch.ones(2, dtype=torch.bool)}, "active"),
        ({"active": torch.ones(1)}, "active"),
        ({"active": torch.ones(1, dtype=torch.bool)}, "active needs out and lse"),
        ({"out": torch.zeros(1, 4, 8)}, "out"),
        ({"lse": torch.zeros(1, 4, dtype=torch.float64)}, "lse"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refuses(change, names):
    good = {
        "query": torch.zeros(1, 4, 16),
        "key_cache": torch.zeros(2, 16, 2, 16),
        "value_cache": torch.zeros(2, 16, 2, 16),
        "plan": plan([1], [5], [[1]], 16, "cpu"),
        "indices": torch.zeros(1, 1, 1, dtype=torch.int32),
        "unit": 4,
        "scale": 1.0,
    }
    selected_attention(**good)
    with pytest.raises(ValueError, match=names):
        selected_attention(**{**good, **change})
