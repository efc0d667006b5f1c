"""page_summary: a pure function of what a page holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import dispatch
from headway.kernels.page_summary import cpu, summarise_pages

NUM_PAGES = 12


@pytest.fixture(params=["cpu", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        yield


def make_cache(filled, page_size, heads, dim, layout="NHD", dtype=torch.float32):
    """A cache whose page p holds `filled[p]` keys and NaN behind them."""
    shape = (len(filled), heads, page_size, dim) if layout == "HND" else (len(filled), page_size, heads, dim)
    cache = torch.randn(shape).to(dtype)
    cache = cache.transpose(1, 2) if layout == "HND" else cache
    for page, count in enumerate(filled):
        cache[page, count:] = torch.nan
    return cache


def make_summaries(cache, untouched=7.0):
    pages, _, heads, dim = cache.shape
    bounds = torch.full((pages, 1, heads, 2 * dim), untouched, dtype=cache.dtype)
    mean = torch.full((pages, 1, heads, dim), untouched, dtype=cache.dtype)
    return bounds, mean


@settings(deadline=None, max_examples=60)
@given(
    page_size=st.sampled_from([1, 3, 16, 64]),
    heads=st.integers(1, 3),
    dim=st.sampled_from([1, 24, 32]),
    layout=st.sampled_from(["NHD", "HND"]),
    wanted=st.lists(st.integers(0, NUM_PAGES - 1), unique=True, max_size=NUM_PAGES),
    skipped=st.integers(0, 3),
    which=st.sampled_from(["both", "bounds", "mean"]),
    seed=st.integers(0, 2**31),
)
def test_summaries(page_size, heads, dim, layout, wanted, skipped, which, seed):
    torch.manual_seed(seed)
    filled = torch.randint(1, page_size + 1, (NUM_PAGES,))
    cache = make_cache(filled.tolist(), page_size, heads, dim, layout)
    bounds, mean = make_summaries(cache)
    pages = torch.tensor(wanted + [-1] * skipped, dtype=torch.int64)
    pages = pages[torch.randperm(len(pages))]
    given = {"bounds": bounds, "mean": mean}
    counts = torch.where(pages < 0, -5, filled[pages])
    summarise_pages(cache, pages, counts, **(given if which == "both" else {which: given[which]}))
    for page in range(NUM_PAGES):
        keys = cache[page, : filled[page]].double()
        columns = [column.tolist() for column in keys.flatten(1).T]
        if page in wanted and which != "mean":
            highs, lows = ([pick(column) for column in columns] for pick in (max, min))
            assert bounds[page, 0, :, :dim].flatten().tolist() == highs
            assert bounds[page, 0, :, dim:].flatten().tolist() == lows
        else:
            assert bounds[page].eq(7).all()
        if page in wanted and which != "bounds":
            expected = torch.tensor([sum(column) / len(column) for column in columns])
            torch.testing.assert_close(mean[page, 0].flatten(), expected, atol=1e-6, rtol=1e-6)
        else:
            assert mean[page].eq(7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_half_precision(dtype, layout):
    cache = make_cache([64] * 8 + [40], 64, 2, 32, layout, dtype)
    cache += 100  # a mean accumulated in half precision would be off by far more than a rounding
    bounds, mean = make_summaries(cache)
    summarise_pages(cache, torch.arange(9), torch.tensor([64] * 8 + [40]), bounds=bounds, mean=mean)
    for page, count in enumerate([64] * 8 + [40]):
        keys = cache[page, :count]
        assert bounds[page, 0].equal(torch.cat((keys.amax(0), keys.amin(0)), -1))
        expected = keys.double().mean(0)
        assert ((mean[page, 0].double() - expected).abs() <= expected * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding(dtype):
    """Of every number of the type its bounds are exact; a mean of two is rounded as PyTorch rounds it."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite() & (numbers.abs() < 1e30)]
    numbers = numbers[: len(numbers) // 64 * 64]
    cache = torch.stack((numbers, numbers[torch.randperm(len(numbers))]), 1).view(-1, 64, 2).transpose(1, 2)
    cache = cache.unsqueeze(2)
    bounds, mean = make_summaries(cache)
    filled = torch.full((len(cache),), 2)
    summarise_pages(cache, torch.arange(len(cache)), filled, bounds=bounds, mean=mean)
    assert bounds[:, 0, 0, :64].equal(cache.amax((1, 2)))
    assert bounds[:, 0, 0, 64:].equal(cache.amin((1, 2)))
    assert mean.flatten().equal((cache.float().sum(1) / 2).to(dtype).flatten())


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_narrower_bounds_are_the_nearest_outside(layout):
    cache = make_cache([64] * 8 + [40], 64, 2, 32, layout)
    cache[0, :2, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 3.4e38, -3.4e38]).repeat(
        4
    )
    counts = torch.tensor([2] + [64] * 7 + [40])
    bounds = torch.full((9, 1, 2, 64), torch.nan, dtype=torch.bfloat16)
    summarise_pages(cache, torch.arange(9), counts, bounds=bounds)
    end = torch.tensor(torch.inf, dtype=torch.bfloat16)
    for page, count in enumerate(counts.tolist()):
        keys = cache[page, :count]
        high, low = bounds[page, 0].split(32, -1)
        assert (high >= keys.amax(0)).all()
        assert (low <= keys.amin(0)).all()
        exact_high, exact_low = high == keys.amax(0), low == keys.amin(0)
        assert (exact_high | (torch.nextafter(high, -end) < keys.amax(0))).all()
        assert (exact_low | (torch.nextafter(low, end) > keys.amin(0))).all()


def test_strides():
    """Channels apart in keys and in what is written."""
    cache = make_cache([16] * 5, 16, 2, 8)
    expected = make_summaries(cache)
    pages, filled = torch.tensor([4, 9, -1, 9, 2])[::2], torch.tensor([16, 0, 0, 0, 7])[::2]
    summarise_pages(cache, pages, filled, bounds=expected[0], mean=expected[1])
    apart = torch.stack((cache, cache), -1)[..., 0]
    bounds, mean = (torch.stack((each, each), -1)[..., 0] for each in make_summaries(cache))
    summarise_pages(apart, pages.contiguous(), filled.contiguous(), bounds=bounds, mean=mean)
    assert bounds.equal(expected[0])
    torch.testing.assert_close(mean, expected[1], atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("threads")
def test_pages_shared_among_threads(monkeypatch):
    monkeypatch.setattr(cpu, "MANY_NUMBERS", 0)
    cache = make_cache([4] * 7, 4, 2, 8)
    bounds, _ = make_summaries(cache)
    pages = torch.tensor([6, 0, -1, 3, 5])
    summarise_pages(cache, pages, torch.tensor([4, 3, 0, 1, 4]), bounds=bounds)
    for page, count in ((6, 4), (0, 3), (3, 1), (5, 4)):
        keys = cache[page, :count]
        assert bounds[page, 0].equal(torch.cat((keys.amax(0), keys.amin(0)), -1))
    assert bounds[[1, 2, 4]].eq(7).all()
    with pytest.raises(IndexError):
        summarise_pages(cache, pages + 1, torch.full((5,), 4), bounds=bounds)


def test_any_history_leads_to_the_same_summary():
    """A page that grew token by token, over the remains of another, beside neighbours or alone."""
    cache = make_cache([16] * 8, 16, 2, 32)
    bounds, mean = make_summaries(cache)
    pages = torch.arange(8)
    summarise_pages(cache, pages, torch.full((8,), 16), bounds=bounds, mean=mean)
    grown_bounds, grown_mean = make_summaries(cache, untouched=torch.nan)
    for count in range(1, 17):
        for some in ([5], [2, 7, 0, 1, 3, 4, 6]):
            some = torch.tensor(some)
            counts = torch.full((len(some),), count)
            summarise_pages(cache, some, counts, bounds=grown_bounds, mean=grown_mean)
    assert grown_bounds.equal(bounds)
    torch.testing.assert_close(grown_mean, mean, atol=1e-6, rtol=1e-6)


def test_no_pages():
    cache = make_cache([4, 4], 4, 2, 8)
    bounds, mean = make_summaries(cache)
    none = torch.empty(0, dtype=torch.int64)
    summarise_pages(cache, none, none, bounds=bounds, mean=mean)
    summarise_pages(cache, none - 1, none, bounds=bounds)
    assert bounds.eq(7).all()
    assert mean.eq(7).all()


CACHE = torch.zeros(3, 4, 2, 8)
PAGES, FILLED = torch.tensor([0, 2]), torch.tensor([4, 1])


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"key_cache": CACHE[0]}, "key_cache"),
        ({"bounds": None}, "nothing to write"),
        ({"pages": PAGES.int()}, "pages"),
        ({"pages": PAGES[None]}, "pages"),
        ({"filled": FILLED.float()}, "filled"),
        ({"filled": FILLED[:1]}, "one length"),
        ({"bounds": torch.zeros(3, 1, 2, 8)}, "bounds"),
        ({"bounds": torch.zeros(3, 1, 2, 16).half()}, "bounds"),
        ({"mean": torch.zeros(3, 2, 8)}, "mean"),
        ({"mean": torch.zeros(3, 1, 2, 8, device="meta")}, "mean"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(changed, names):
    bounds = torch.zeros(3, 1, 2, 16)
    arguments = {"key_cache": CACHE, "pages": PAGES, "filled": FILLED, "bounds": bounds} | changed
    with pytest.raises(ValueError, match=names):
        summarise_pages(**arguments)


@pytest.mark.parametrize("count", [0, -1, 5])
def test_refuses_counts_out_of_range(count):
    if dispatch.version(CACHE) == "cpu":
        with pytest.raises(ValueError, match="filled"):
            summarise_pages(CACHE, PAGES, torch.tensor([4, count]), bounds=torch.zeros(3, 1, 2, 16))


def test_refuses_pages_beyond_the_cache():
    with pytest.raises(IndexError):
        summarise_pages(CACHE, torch.tensor([0, 3]), FILLED, bounds=torch.zeros(3, 1, 2, 16))
