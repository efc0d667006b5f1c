"""CPU attention that multiplies in bf16, as where the CPU has instructions for it: it must add up in fp32."""

import pytest
import torch

from headway.kernels import dispatch
from headway.kernels.paged_attention import cpu_cache, cpu_schedule, cpu_tiled, paged_attention, plan

from .selections import make_selections
from .tiled_chunk import make_tiles

HALF = torch.bfloat16
UNFLASHED = {"softcap": ({"softcap": 50.0}, {}), "another-head-size": ({}, {"value_dim": 16})}
KINDS = {"flash": ({}, {})} | UNFLASHED
ROUNDED = 2**-9
MANY = 2**17  # keys: added 256 at a time, a bf16 sum stops at half of them


@pytest.fixture(autouse=True)
def _fast_bfloat16(monkeypatch):
    """Whatever this machine has; the answer is remembered in two places."""
    remembered = cpu_cache.multiplies_fast, cpu_cache._layout
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        for each in remembered:
            each.cache_clear()
        assert cpu_cache.multiplies_fast(HALF)
        yield
    for each in remembered:
        each.cache_clear()


@pytest.fixture
def check(monkeypatch):
    """Compare with the fp32 reference: out as bf16 rounds it, lse as far as its scores are rounded.

    A score that is rounded to bf16 is off by 2^-9 of itself at most, and none that counts is above the lse.
    """

    def compare(run, lse_rtol=0.0):
        out, lse = run()
        monkeypatch.setattr(dispatch, "_REFERENCE", True)
        expected, expected_lse = run()
        assert out.dtype == HALF
        assert lse.dtype == torch.float32
        torch.testing.assert_close(out, expected, atol=8e-3, rtol=2**-7)
        torch.testing.assert_close(lse, expected_lse, atol=1e-3, rtol=lse_rtol)

    return compare


def halves(value_dim=8):
    """Caches and a block table: equal keys, values 0 up to the middle of the sequence and then 1."""
    table = torch.randperm(MANY // 64)
    key = torch.zeros(len(table), 64, 1, 8, dtype=HALF)
    value = torch.zeros(len(table), 64, 1, value_dim, dtype=HALF)
    value[table[len(table) // 2 :]] = 1.0
    return key, value, table.tolist()


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize(("softcap", "value_dim"), [(50.0, 8), (None, 4)], ids=list(UNFLASHED))
def test_tiles_of_keys(monkeypatch, check, softcap, value_dim, tokens):
    monkeypatch.setattr(cpu_tiled, "SCORES", 1)  # tiles of 256 keys
    key, value, table = halves(value_dim)
    sequence, query = plan([tokens], [MANY], [table], 64, "cpu"), torch.zeros(tokens, 2, 8, dtype=HALF)
    check(lambda: paged_attention(query, key, value, sequence, scale=1.0, softcap=softcap))


@pytest.mark.parametrize("tokens", [1, 2])
def test_parts_of_keys(monkeypatch, check, tokens):
    monkeypatch.setattr(cpu_schedule, "GATHER_BYTES", 1)  # parts of 64 keys
    monkeypatch.setattr(cpu_schedule, "DIRECT_BYTES", 1 << 40)
    key, value, table = halves()
    sequence, query = plan([tokens], [MANY], [table], 64, "cpu"), torch.zeros(tokens, 2, 8, dtype=HALF)
    check(lambda: paged_attention(query, key, value, sequence, scale=1.0))


@pytest.mark.parametrize("kind", UNFLASHED)
def test_paged_attention(batch, check, kind):
    given, made = UNFLASHED[kind]
    case = batch([(1, 3001), (30, 2999)], dtype=HALF, **made)
    caches = case.key_cache, case.value_cache
    check(lambda: paged_attention(case.query, *caches, case.plan, scale=0.2, **given), ROUNDED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lists", [(1, 1, 1), (1, 4, 2)], ids=str)
def test_tile_attention(check, lists, kind):
    given, made = KINDS[kind]
    chunk = make_tiles(
        128, 2047, 32, lists, span=16, counts=(20, 40), sink_size=16, local="near", dtype=HALF, **made
    )
    check(lambda: chunk.run(**given), 0.0 if kind == "flash" else ROUNDED)


@pytest.mark.parametrize("kind", UNFLASHED)
@pytest.mark.parametrize("num_lists", [1, 2])
def test_selected_attention(check, num_lists, kind):
    """Its scores are exact: a scale at which rounded ones show."""
    given, made = UNFLASHED[kind]
    case = make_selections([3001, 2500], 16, num_lists, width=100, fill="most", dtype=HALF, **made)
    check(lambda: case.run(scale=1.0, **given))
