"""top_k: exact, ascending, deterministic, whatever the row."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.kernels import dispatch
from headway.kernels.top_k import cpu, top_k

INF, NAN = math.inf, math.nan
JUST_OVER_ONE = [1.0, 1.0 + 2**-23, 1.0 + 2**-22, 1.0 - 2**-24]  # differ in their last bits only
HOSTILE = [0.0, -0.0, INF, -INF, NAN, 3.4e38, -3.4e38, 1e-45, -1e-45, *JUST_OVER_ONE]

scores = st.one_of(
    st.lists(st.floats(width=32), min_size=1, max_size=90),
    st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=90),
    st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=90),
    st.lists(st.sampled_from(JUST_OVER_ONE), min_size=1, max_size=90),
    st.lists(st.floats(width=32), min_size=1, max_size=90).map(sorted),
    st.lists(st.floats(width=32), min_size=1, max_size=90).map(lambda row: sorted(row, reverse=True)),
)

batches = st.integers(1, 30).flatmap(
    lambda length: st.lists(
        st.lists(st.sampled_from([*HOSTILE, 5.0, 7.0]), min_size=length, max_size=length),
        min_size=1,
        max_size=6,
    )
)


def oracle(row, k, limit=None):
    """Python's stable sort over the row's list."""
    eligible = [i for i, score in enumerate(row) if score > -INF]
    best = sorted(eligible, key=lambda i: -row[i])[: max(0, k if limit is None else min(k, limit))]
    return sorted(best) + [-1] * (k - len(best))


def check(rows, k, limits=None):
    chosen = top_k(
        torch.tensor(rows, dtype=torch.float32), k, None if limits is None else torch.tensor(limits)
    )
    assert chosen.dtype == torch.int32
    rows = torch.tensor(rows, dtype=torch.float32).tolist()
    assert chosen.tolist() == [
        oracle(row, k, None if limits is None else limits[i]) for i, row in enumerate(rows)
    ]


@pytest.fixture(params=["cpu", "cpu groups", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        if request.param == "cpu groups":  # hypothesis rows are too short for groups otherwise
            patch.setattr(cpu, "FEWEST_GROUPS", 1)
        top_k(torch.zeros(1), 1)  # compiles, for which an example would be too slow
        yield


@given(row=scores, k=st.integers(1, 100))
def test_one_row(row, k):
    check([row], k)


@given(row=scores, k=st.integers(1, 4))
def test_few_of_a_row(row, k):
    check([row], k)


@given(row=scores, k=st.integers(1, 40), data=st.data())
def test_limits(row, k, data):
    rows = [row, row[::-1], sorted(row)]
    check(rows, k, data.draw(st.lists(st.integers(-1, 45), min_size=3, max_size=3)))


@given(rows=batches, k=st.integers(1, 12))
def test_rows_are_independent_of_each_other(rows, k):
    check(rows, k)
    alone = [top_k(torch.tensor(row), k).tolist() for row in rows]
    assert top_k(torch.tensor(rows), k).tolist() == alone


LONG = (
    "normal", "rounded", "constant", "ascending", "descending", "NaN", "few", "none", "one bucket",
    "denormal", "signed zeros", "infinite",
)  # fmt: skip


@pytest.mark.parametrize("k", [1, 50, 700, 5000])
@pytest.mark.parametrize("kind", LONG)
def test_long_rows(kind, k):
    rows = torch.randn(3, 9001)
    match kind:
        case "rounded":
            rows = rows.mul(3).round()
        case "constant":
            rows.fill_(-2.5)
        case "ascending":
            rows = rows.sort(-1).values
        case "descending":
            rows = rows.sort(-1, descending=True).values
        case "NaN":
            rows[0, ::2] = NAN
            rows[1, 17] = NAN
            rows[2, 1:] = NAN
        case "few":
            rows[:, 40:] = -INF
            rows[:, -5:] = INF
        case "none":
            rows.fill_(-INF)
            rows[1, 4000] = -3.4e38
        case "one bucket":
            rows = 1 + rows.abs() * 2**-21
        case "denormal":
            rows *= 1e-43
        case "signed zeros":
            rows = rows.sign() * 0.0
            rows[0, ::100] = 1e-45
            rows[1, ::100] = -1e-45
        case "infinite":
            rows[:, ::3] = INF
            rows[:, 1::3] = -INF
    check(rows.tolist(), k)
    check(rows.tolist(), k, [k - 1, 0, 2 * k])


def test_forced_units_come_first():
    row = torch.full((1, 64), 1e30)
    row[0, [0, 40, 63]] = INF
    assert top_k(row, 3).tolist() == [[0, 40, 63]]
    assert top_k(row, 5).tolist() == [[0, 1, 2, 40, 63]]


def test_the_same_every_time():
    row = torch.randint(0, 9, (4, 5000)).float()
    first = top_k(row, 333)
    assert all(top_k(row.clone(), 333).equal(first) for _ in range(3))


@pytest.mark.usefixtures("threads")
def test_rows_shared_among_threads(monkeypatch):
    monkeypatch.setattr(cpu, "MANY_SCORES", 0)
    rows = torch.randn(7, 300)
    check(rows.tolist(), 20)
    check(rows.tolist(), 20, list(range(-1, 6)))


def test_shapes_and_strides():
    wide = torch.randn(2, 5, 3, 40).transpose(1, 2)[..., 3:30]
    limits = torch.randint(0, 9, (3, 2), dtype=torch.int32).T[:, :, None].expand(2, 3, 5)
    chosen = top_k(wide, 7, limits)
    assert chosen.shape == (2, 3, 5, 7)
    assert chosen.flatten(0, 2).equal(top_k(wide.contiguous().flatten(0, 2), 7, limits.flatten()))
    assert top_k(wide[0, 0, 0], 7).tolist() == oracle(wide[0, 0, 0].tolist(), 7)
    rows, limits = torch.randn(9, 500)[::2, 3:400], torch.arange(10)[::2]
    assert top_k(rows, 6, limits).equal(top_k(rows.contiguous(), 6, limits.contiguous()))
    assert top_k(rows[:1].expand(3, -1), 6).equal(top_k(rows[:1], 6).expand(3, -1))
    assert top_k(rows.T[:1].T, 6).equal(top_k(rows[:, :1].contiguous(), 6))


def test_scores_of_which_gradients_are_wanted():
    assert top_k(torch.tensor([1.0, 3.0, 2.0], requires_grad=True), 2).tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)], ids=str)
def test_nothing_to_choose_from(shape):
    chosen = top_k(torch.empty(shape), 4)
    assert chosen.tolist() == torch.full((*shape[:-1], 4), -1).tolist()


def test_scores_are_left_alone():
    rows = torch.tensor([[1.0, NAN, -0.0, INF, -INF, 2.0]])
    before = rows.clone()
    top_k(rows, 2)
    assert rows.view(torch.int32).equal(before.view(torch.int32))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"scores": torch.zeros(2, 8, dtype=torch.float64)}, "scores"),
        ({"scores": torch.tensor(1.0)}, "scores"),
        ({"scores": torch.zeros(8, 2).T}, "scores"),
        ({"k": 0}, "k must"),
        ({"limits": torch.zeros(2)}, "limits"),
        ({"limits": torch.zeros(3, dtype=torch.int64)}, "limits"),
        ({"limits": torch.zeros(2, dtype=torch.int64, device="meta")}, "limits"),
    ],
    ids=["dtype", "0-D", "strides", "k", "limits dtype", "limits shape", "limits device"],
)
def test_refuses(change, names):
    good = {"scores": torch.zeros(2, 8), "k": 3, "limits": torch.ones(2, dtype=torch.int64)}
    top_k(**good)
    with pytest.raises(ValueError, match=names):
        top_k(**{**good, **change})
