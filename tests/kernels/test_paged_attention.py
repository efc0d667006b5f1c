"""paged_attention and its reference against an oracle in fp64, and the plan's contract."""

import pytest
import torch

from headway.kernels import cpu_splits, dispatch
from headway.kernels.paged_attention import cpu_schedule, paged_attention, plan

PAGE = 16
MIXED = [(1, 1), (1, 40), (5, 21), (16, 16), (33, 50), (1, PAGE), (1, PAGE - 1), (2, PAGE + 1)]
KINDS = {
    "dense": {},
    "window": {"window": 9},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "window+sinks": {"window": 20, "sinks": True},
    "softcap+window": {"softcap": 2.0, "window": 7},
    "all": {"softcap": 2.0, "window": 17, "sinks": True},
}


@pytest.fixture(params=["cpu", "reference"])
def version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")
    return request.param


def kind_of(name, heads):
    kind = dict(KINDS[name])
    if "sinks" in kind:
        kind["sinks"] = torch.randn(heads)
    return kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pages", ["shuffled", "contiguous", "two-runs"])
@pytest.mark.usefixtures("version")
def test_mixed_batch(batch, kind, pages):
    batch(MIXED, pages=pages).check(paged_attention, **kind_of(kind, 4))


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 7])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("version")
def test_lengths(batch, length, kind):
    lens = [(1, length), (length, length), (-(-length // 2), length)]
    batch(lens, page_size=PAGE).check(paged_attention, **kind_of(kind, 4))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (7, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("dim", [20, 24, 40, 64, 80, 128, 256])
@pytest.mark.usefixtures("version")
def test_heads_and_head_sizes(batch, heads, dim):
    batch([(1, 30), (9, 37)], heads=heads, dim=dim).check(paged_attention, scale=dim**-0.5)


@pytest.mark.parametrize("kind", ["dense", "window", "all"])
@pytest.mark.parametrize("pages", ["shuffled", "contiguous"])
@pytest.mark.parametrize("latent", [True, False], ids=["latent", "two-caches"])
@pytest.mark.usefixtures("version")
def test_values_of_another_head_size(batch, kind, pages, latent):
    case = batch(MIXED, heads=(4, 1), dim=48, value_dim=32, latent=latent, pages=pages)
    case.check(paged_attention, **kind_of(kind, 4))


@pytest.mark.parametrize("kind", ["dense", "window", "softcap"])
@pytest.mark.parametrize("pages", ["shuffled", "contiguous"])
@pytest.mark.usefixtures("version")
def test_head_first_cache_and_strided_query(batch, kind, pages):
    batch(MIXED, layout="HND", strided_query=True, pages=pages).check(paged_attention, **kind_of(kind, 4))


@pytest.mark.parametrize("page_size", [1, 3, 64])
@pytest.mark.usefixtures("version")
def test_page_sizes(batch, page_size):
    batch(MIXED, page_size=page_size).check(paged_attention, window=19)


@pytest.mark.parametrize("kind", ["dense", "window", "softcap", "sinks"])
@pytest.mark.parametrize("pages", ["shuffled", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("version")
def test_half_precision(batch, kind, pages, dtype):
    case = batch(MIXED, dtype=dtype, pages=pages)
    expected, expected_lse = case.oracle(0.2, **(kind := kind_of(kind, 4)))
    out, lse = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2, **kind)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["dense", "window", "softcap"])
@pytest.mark.parametrize("pages", ["shuffled", "contiguous", "two-runs"])
def test_runs_read_in_place_and_gathers_in_parts(batch, monkeypatch, kind, pages):
    """Limits so low that one chunk has runs in place, several gathers and a merge over them."""
    monkeypatch.setattr(cpu_schedule, "DIRECT_BYTES", 40 * 512)
    monkeypatch.setattr(cpu_schedule, "GATHER_BYTES", 64 * 512)
    lens = [(1, 300), (1, 290), (1, 7), (30, 230), (140, 140), (70, 233)]
    batch(lens, pages=pages).check(
        paged_attention, **{"dense": {}, "window": {"window": 150}, "softcap": {"softcap": 1.0}}[kind]
    )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KINDS)
def test_decodes_split_over_threads(batch, monkeypatch, kind):
    monkeypatch.setattr(cpu_splits, "SHARED_NUMBERS", 1)
    given = kind_of(kind, 4)
    batch([(1, 67), (1, 1), (1, 300)], heads=(4, 2)).check(paged_attention, **given)
    batch([(1, 67)], heads=(4, 1), dim=48, value_dim=32, latent=True).check(paged_attention, **given)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KINDS)
def test_decodes_shared_among_threads(batch, monkeypatch, kind):
    """As many rows as make each thread's share even: whole sequences to a thread."""
    monkeypatch.setattr(cpu_splits, "SHARED_NUMBERS", 1)
    batch([(1, 60 + n) for n in (7, 1, 30, 4, 64, 65, 3, 9)], heads=(4, 2)).check(
        paged_attention, **kind_of(kind, 4)
    )


@pytest.mark.usefixtures("version")
def test_window_longer_than_the_sequence_is_dense(batch):
    case = batch(MIXED)
    dense = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2)
    wide = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2, window=50)
    for one, other in zip(dense, wide, strict=True):
        torch.testing.assert_close(one, other)


def test_many_tiles_of_a_window(batch):
    batch([(150, 400), (131, 131)], pages="two-runs").check(paged_attention, window=70)


@pytest.mark.usefixtures("version")
def test_out_is_written_in_place(batch):
    case = batch(MIXED)
    out = torch.full((case.query.shape[0], 8, 32), torch.nan)[:, ::2]
    returned, _ = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2, out=out)
    assert returned is out
    torch.testing.assert_close(out.double(), case.oracle(0.2)[0], atol=2e-5, rtol=2e-4)


def test_a_request_does_not_depend_on_its_neighbours(batch):
    case = batch(MIXED)
    together, _ = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2)
    token = 0
    for b, (q_len, kv_len) in enumerate(MIXED):
        alone = plan([q_len], [kv_len], [case.plan.host_tables[b]], PAGE, "cpu")
        query = case.query[token : token + q_len]
        out, _ = paged_attention(query, case.key_cache, case.value_cache, alone, scale=0.2)
        torch.testing.assert_close(out, together[token : token + q_len], atol=2e-6, rtol=1e-5)
        token += q_len


def test_plan_tensors():
    made = plan([1, 3], [17, 5], [[4, 9, 11], [2]], PAGE, "cpu")
    assert made.cu_seqlens_q.tolist() == [0, 1, 4]
    assert made.kv_lens.tolist() == [17, 5]
    assert made.block_table.tolist() == [[4, 9], [2, 0]]
    assert {made.cu_seqlens_q.dtype, made.kv_lens.dtype, made.block_table.dtype} == {torch.int32}
    assert (made.num_tokens, made.max_page) == (4, 9)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (([], [], [], 16), "q_lens"),
        (([1], [1, 2], [[0]], 16), "kv_lens"),
        (([0], [4], [[0]], 16), r"q_lens\[0\]"),
        (([1, 5], [1, 4], [[0], [0]], 16), r"q_lens\[1\]"),
        (([1], [17], [[0]], 16), r"block_tables\[0\]"),
        (([1], [17], [[0, -1]], 16), r"block_tables\[0\]"),
        (([1], [1], [[0]], 0), "page_size"),
    ],
    ids=[
        "empty",
        "unequal",
        "no new token",
        "more new than all",
        "short table",
        "negative page",
        "page size",
    ],
)
def test_plan_refuses(arguments, names):
    with pytest.raises(ValueError, match=names):
        plan(*arguments, "cpu")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"query": torch.zeros(1, 4, 8)}, "query"),
        ({"query": torch.zeros(2, 4, 16)}, "query"),
        ({"query": torch.zeros(1, 3, 16)}, "query"),
        ({"query": torch.zeros(1, 4, 16, dtype=torch.float16)}, "dtype"),
        ({"value_cache": torch.zeros(2, 16, 1, 16)}, "value_cache"),
        ({"key_cache": torch.zeros(2, 16, 16)}, "key_cache"),
        ({"plan": plan([1], [5], [[0]], 8, "cpu")}, "plan"),
        ({"plan": plan([1], [5], [[2]], 16, "cpu")}, "plan"),
        ({"window": 0}, "window"),
        ({"softcap": 0.0}, "softcap"),
        ({"sinks": torch.zeros(2)}, "sinks"),
        ({"out": torch.zeros(1, 4, 8)}, "out"),
        ({"out": torch.zeros(1, 4, 16, dtype=torch.float16)}, "out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refuses(change, names):
    good = {
        "query": torch.zeros(1, 4, 16),
        "key_cache": torch.zeros(2, 16, 2, 16),
        "value_cache": torch.zeros(2, 16, 2, 16),
        "plan": plan([1], [5], [[1]], 16, "cpu"),
        "scale": 1.0,
    }
    paged_attention(**good)
    with pytest.raises(ValueError, match=names):
        paged_attention(**{**good, **change})
