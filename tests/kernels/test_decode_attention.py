"""decode_attention: newest tokens are stored where they belong, nothing else is, and see what came before."""

import pytest
import torch

from headway.kernels import cpu_splits, dispatch
from headway.kernels.decode_attention import decode_attention

LENGTHS = [1, 15, 16, 17, 40, 300, 2, 64]


@pytest.fixture(params=["cpu", "reference"])
def version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")


def check(case, kind, atol=2e-5):
    """The case's newest keys and values are taken out of its pages first."""
    caches = case.key_cache, case.value_cache
    full = [cache.clone() for cache in caches]
    for length, pages in zip(case.plan.host_kv_lens, case.plan.host_tables, strict=True):
        for cache in caches:
            cache[pages[-1], (length - 1) % case.plan.page_size] = torch.nan
    key, value = (
        torch.stack([rows[-1] for rows in each]).transpose(0, 1).contiguous().transpose(0, 1)
        for each in (case.keys, case.values)
    )
    out = decode_attention(case.query, key, value, *caches, case.plan, scale=0.2, **kind)
    expected, _ = case.oracle(0.2, **kind)
    assert out.dtype == case.query.dtype
    torch.testing.assert_close(out.double(), expected, atol=atol, rtol=10 * atol)
    for cache, was in zip(caches, full, strict=True):
        torch.testing.assert_close(cache, was, atol=0, rtol=0, equal_nan=True)


def kind_of(name):
    sinks = {"sinks": torch.randn(4)}
    return {"dense": {}, "window": {"window": 9}, "softcap": {"softcap": 1.5}, "sinks": sinks}[name]


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("kind", ["dense", "window", "softcap", "sinks"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_stored_and_attended(batch, kind, layout):
    lens = [(1, length) for length in LENGTHS]
    check(batch(lens, value_dim=24, layout=layout, strided_query=True), kind_of(kind))


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
def test_half_precision(batch, dtype, atol):
    check(batch([(1, length) for length in LENGTHS], dtype=dtype), {}, atol)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("lengths", [LENGTHS, [300], [60, 61, 62, 63, 64, 65]])
def test_several_threads(batch, monkeypatch, lengths):
    monkeypatch.setattr(cpu_splits, "SHARED_NUMBERS", 1)
    check(batch([(1, length) for length in lengths]), {})


def wrong(case, **other):
    key = torch.stack([rows[-1] for rows in case.keys])
    value = torch.stack([rows[-1] for rows in case.values])
    given = {"query": case.query, "key": key, "value": value, "plan": case.plan, **other}
    return lambda: decode_attention(
        given["query"], given["key"], given["value"], case.key_cache, case.value_cache, given["plan"],
        scale=0.2, window=given.get("window"),
    )  # fmt: skip


def test_refused(batch):
    case, chunk = batch([(1, 20), (1, 30)]), batch([(2, 20), (1, 30)])
    for name, given in {
        "query": {"query": case.query[:, :3]},
        "key": {"key": torch.zeros(2, 1, 32)},
        "value": {"value": torch.zeros(1, 2, 32)},
        "plan": {"plan": chunk.plan},
        "dtype": {"key": torch.zeros(2, 2, 32).half()},
        "window": {"window": 0},
    }.items():
        with pytest.raises(ValueError, match=name):
            wrong(case, **given)()
