"""selected_attention's Triton kernels in the interpreter, over caches that show only what was chosen."""

import mmap
import random

import pytest
import torch

from headway.kernels.paged_attention import paged_attention, plan
from headway.kernels.selected_attention import gpu, selected_attention
from tests.kernels.selections import make_selections

PAGE = 16
LENGTHS = [1, PAGE, PAGE + 1, 4 * PAGE + 7]
KINDS = {"plain": {}, "all": {"softcap": 1.5, "sinks": True}}


def kind_of(name, heads=4):
    kind = dict(KINDS[name])
    if "sinks" in kind:
        kind["sinks"] = torch.randn(heads)
    return kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("unit", "num_lists"), [(1, 1), (1, 4), (4, 2), (PAGE, 1), (PAGE, 2)])
def test_ragged_batch(unit, num_lists, kind):
    make_selections(LENGTHS, unit, num_lists, width=64 // unit).check(**kind_of(kind))


@pytest.mark.parametrize("splits", [3, 7])
@pytest.mark.parametrize("unit", [1, PAGE])
def test_splits(monkeypatch, unit, splits):
    """More splits than some lists have tiles: their parts are empty, and the sinks count once."""
    monkeypatch.setattr(gpu, "num_splits", lambda *_: splits)
    make_selections([190, 5], unit, 2, width=160 // unit).check(**kind_of("all"))


def test_splits_follow_from_shapes_alone():
    assert gpu.num_splits(8, 2048, 132) == 32
    assert gpu.num_splits(8, 1 << 17, 132) == 66
    assert gpu.num_splits(4096, 1 << 17, 132) == 1
    assert gpu.num_splits(1, 16, 132) == 1


@pytest.mark.parametrize(
    ("heads", "dim"), [((4, 4), 24), ((6, 2), 40), ((7, 1), 64), ((40, 1), 272)], ids=str
)
def test_heads_and_head_sizes(heads, dim):
    for num_lists in {1, *heads}:
        make_selections([37], 4, num_lists, heads=heads, dim=dim).check(scale=dim**-0.5)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(272, 256), (48, 32)])
@pytest.mark.parametrize("latent", [True, False], ids=["latent", "two-caches"])
def test_values_of_another_head_size(key_dim, value_dim, latent):
    case = make_selections([70, 30], 4, 1, heads=(5, 1), dim=key_dim, value_dim=value_dim, latent=latent)
    case.check(scale=0.05)


def test_head_first_cache_strided_query_and_fp16():
    make_selections(LENGTHS, 4, layout="HND", strided_query=True).check()
    make_selections(LENGTHS, 4, dtype=torch.float16).check(atol=4e-3)


@pytest.mark.parametrize("tables", ["shuffled", "reversed", "interleaved", "shared", "far"])
def test_hostile_tables(tables):
    page_size, unit = random.choice([(1, 1), (3, 3), (8, 2), (64, 16)])
    make_selections([75, 3, 64], unit, 2, 13, page_size=page_size, tables=tables).check()


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("num_lists", [1, 4])
def test_inactive_rows_keep_what_they_hold(monkeypatch, num_lists, splits):
    monkeypatch.setattr(gpu, "num_splits", lambda *_: splits)
    case = make_selections([20, 50, 33], 4, num_lists)
    active = torch.tensor([False, True, False, True, True])[::2]
    case.query[~active] = torch.nan
    out, lse = torch.full((3, 8, 32), 7.0)[:, ::2], torch.full((3, 8), 7.0)[:, ::2]
    case.run(active=active, out=out, lse=lse)
    for written, expected in zip((out, lse), case.oracle(0.2), strict=True):
        torch.testing.assert_close(written[active].double(), expected[active], atol=2e-5, rtol=2e-4)
        assert (written[~active] == 7.0).all()


@pytest.mark.parametrize("unit", [1, PAGE])
def test_everything_chosen_is_dense(unit):
    case = make_selections(LENGTHS, unit, 2, fill="all")
    dense = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.2)
    for one, other in zip(case.run(), dense, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


def test_a_spare_row_of_a_captured_graph_is_empty():
    case = make_selections([40, 30], fill="most")
    expected, _ = case.oracle(0.2)
    case.plan.kv_lens[1] = 0
    out, lse = case.run()
    torch.testing.assert_close(out[0].double(), expected[0], atol=2e-5, rtol=2e-4)
    assert (out[1] == 0).all()
    assert (lse[1] == float("-inf")).all()


def test_a_pool_beyond_two_to_the_31_elements():
    """Page 2 begins 2^31 elements in: page numbers must be widened before they are multiplied."""
    page_stride = 2**30
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, not named before Python 3.13: only touched pages take memory
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, 2 * (2 * page_stride + 2 * PAGE * 32), flags=flags)
    cache = torch.frombuffer(memory, dtype=torch.float16).as_strided(
        (3, PAGE, 1, 32), (page_stride, 32, 32, 1)
    )
    key, query = torch.randn(PAGE, 1, 32).half(), torch.randn(1, 2, 32).half()
    cache[2] = key
    indices = torch.tensor([[[1, 3]]], dtype=torch.int32)
    out, _ = selected_attention(
        query, cache, cache, plan([1], [PAGE], [[2]], PAGE, "cpu"), indices, 4, scale=0.2
    )
    chosen = torch.cat([key[4:8], key[12:16]])[:, 0].float()
    expected = torch.softmax(query[0].float() @ chosen.T * 0.2, -1) @ chosen
    torch.testing.assert_close(out[0].float(), expected, atol=4e-3, rtol=4e-3)
