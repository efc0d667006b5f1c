"""Triton kernels in the interpreter: fp32 and fp16 only, its bf16 arithmetic is silently wrong."""

import mmap

import pytest
import torch

from headway.kernels import dispatch
from headway.kernels.merge_states import merge_states
from headway.kernels.merge_states import reference as merge_reference
from headway.kernels.paged_attention import gpu, gpu_schedule, paged_attention, plan
from headway.kernels.store_kv import reference as store_reference
from headway.kernels.store_kv import store_kv

PAGE = 16
MIXED = [(1, 1), (5, 21), (1, 3 * PAGE + 7), (33, 50), (1, PAGE - 1), (2, PAGE + 1)]
KINDS = {
    "dense": {},
    "window": {"window": 9},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "all": {"softcap": 2.0, "window": 17, "sinks": True},
}


def kind_of(name, heads=4):
    kind = dict(KINDS[name])
    if "sinks" in kind:
        kind["sinks"] = torch.randn(heads)
    return kind


def test_dispatch_goes_to_triton():
    assert dispatch.version(torch.zeros(1)) == "gpu"


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batch(batch, kind):
    batch(MIXED).check(paged_attention, **kind_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batch_fp16(batch, kind):
    batch(MIXED, dtype=torch.float16).check(paged_attention, atol=4e-3, **kind_of(kind))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 3 * 32 + 7])
def test_lengths_around_a_key_tile(batch, length):
    lens = [(1, length), (length, length), (-(-length // 2), length)]
    batch(lens, heads=(2, 1)).check(paged_attention, **kind_of("dense", 2))
    batch(lens, heads=(2, 1)).check(paged_attention, **kind_of("all", 2))


@pytest.mark.parametrize(
    ("heads", "dim"),
    [((4, 4), 24), ((6, 2), 40), ((7, 1), 64), ((2, 2), 80), ((20, 1), 128), ((4, 2), 256)],
    ids=str,
)
def test_heads_and_head_sizes(batch, heads, dim):
    batch([(1, 30), (9, 37)], heads=heads, dim=dim).check(paged_attention, scale=dim**-0.5)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (7, 1), (20, 1)], ids=str)
@pytest.mark.parametrize("dim", [16, 24, 40, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_every_head_size(batch, heads, dim, kind):
    batch([(1, 130), (19, 77)], heads=heads, dim=dim).check(
        paged_attention, scale=dim**-0.5, **kind_of(kind, heads[0])
    )


@pytest.mark.parametrize(("key_dim", "value_dim"), [(272, 256), (320, 256), (48, 32), (32, 48)])
@pytest.mark.parametrize("latent", [True, False], ids=["latent", "two-caches"])
def test_values_of_another_head_size(batch, key_dim, value_dim, latent):
    if latent and value_dim > key_dim:
        pytest.skip("a view is no wider than what it views")
    case = batch([(1, 70), (9, 30)], heads=(5, 1), dim=key_dim, value_dim=value_dim, latent=latent)
    case.check(paged_attention, scale=0.05)


@pytest.mark.slow
def test_mla(batch):
    batch([(1, 70), (3, 30)], heads=(16, 1), dim=576, value_dim=512, latent=True).check(
        paged_attention, scale=0.03
    )


@pytest.mark.parametrize("kind", ["dense", "all"])
def test_head_first_cache_and_strided_query(batch, kind):
    batch(MIXED, layout="HND", strided_query=True).check(paged_attention, **kind_of(kind))


@pytest.mark.parametrize("page_size", [1, 3, 64])
def test_page_sizes(batch, page_size):
    batch(MIXED, page_size=page_size).check(paged_attention, window=19)


@pytest.mark.parametrize(
    ("cores", "kind"),
    [(2, "all"), (20, "dense"), (20, "window"), (20, "sinks")],
    ids=lambda value: f"{value}",
)
def test_splits(batch, monkeypatch, kind, cores):
    """Short sequences beside long ones: some splits have no keys at all, behind a window most have none."""
    monkeypatch.setattr(gpu, "num_cores", lambda _: cores)
    monkeypatch.setattr(gpu_schedule, "SPLIT_TOKENS", 16)
    case = batch([(1, 190), (1, 5), (20, 90), (3, 3)])
    case.check(paged_attention, **kind_of(kind))
    launches = [launch for made in case.plan._memo.values() for launch in made]
    assert max(launch.splits for launch in launches) > 1


def test_a_padded_row_of_a_captured_graph_writes_nothing(batch):
    """A graph's spare rows have no tokens; their tiles run and must leave the others alone."""
    case = batch([(1, 40), (1, 30), (1, 20)])
    expected, _ = case.oracle(0.2)
    case.plan.kv_lens[2] = 0
    case.plan.cu_seqlens_q[3] = 2
    out, lse = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2)
    torch.testing.assert_close(out[:2].double(), expected[:2], atol=2e-5, rtol=2e-4)
    assert out[2].isnan().all()
    assert lse[2].isnan().all()


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize("dim", [24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_merge_states(parts, dim, dtype):
    outs, lses = (
        torch.randn(parts, dim, 3, 4).to(dtype).transpose(1, 3),
        torch.randn(parts, 3, 4).transpose(1, 2),
    )
    lses[0, 1], outs[0, 1] = float("-inf"), torch.nan
    lses[:, 2], outs[:, 2] = float("-inf"), torch.nan
    out, lse = merge_states(outs, lses)
    expected, expected_lse = merge_reference.merge_states(outs, lses)
    torch.testing.assert_close(out, expected, atol=2e-3 if dtype == torch.float16 else 1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, expected_lse)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dims", [(24, 16), (64, 64), (576, None)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_store_kv(layout, dims, dtype):
    tokens, heads, pages = 7, 2, 5

    def cache(dim):
        shape = (pages, heads, 4, dim) if layout == "HND" else (pages, 4, heads, dim)
        made = torch.full(shape, torch.nan, dtype=dtype)
        return made.transpose(1, 2) if layout == "HND" else made

    news = [
        None if dim is None else torch.randn(heads, tokens, dim + 3).to(dtype)[..., 1:-2].transpose(0, 1)
        for dim in dims
    ]
    caches = [None if dim is None else cache(dim) for dim in dims]
    expected = [None if one is None else one.clone() for one in caches]
    slots = torch.randperm(pages * 4)[:tokens]
    slots[::3] = -1
    store_kv(*news, *caches, slots)
    store_reference.store_kv(*news, *expected, slots)
    for one, other in zip(caches, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, equal_nan=True, atol=0, rtol=0)


def test_a_pool_beyond_two_to_the_31_elements():
    """Page 2 begins 2^31 elements in: page numbers must be widened before they are multiplied."""
    page_stride, shape = 2**30, (3, PAGE, 1, 32)
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, not named before Python 3.13: only touched pages take memory
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, 2 * (2 * page_stride + 2 * PAGE * 32), flags=flags)
    flat = torch.frombuffer(memory, dtype=torch.float16)
    cache = flat.as_strided(shape, (page_stride, 32, 32, 1))
    key, query = torch.randn(PAGE, 1, 32).half(), torch.randn(1, 2, 32).half()
    store_kv(key, None, cache, None, torch.arange(2 * PAGE, 3 * PAGE))
    torch.testing.assert_close(cache[2], key, atol=0, rtol=0)
    out, _ = paged_attention(query, cache, cache, plan([1], [PAGE], [[2]], PAGE, "cpu"), scale=0.2)
    weights = torch.softmax(query[0].float() @ key[:, 0].float().T * 0.2, -1)
    torch.testing.assert_close(out[0].float(), weights @ key[:, 0].float(), atol=4e-3, rtol=4e-3)
