"""Sidecars follow the pages: whatever is written when, they are those of the keys that lie there."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.cache import KVCache
from headway.engine.layer_spec import LayerSpec
from headway.engine.sidecars import Sidecar, WrittenPages
from headway.kernels.store_kv import store_kv

PAGE_SIZE, PAGES, DIM = 16, 6, 8
CPU = torch.device("cpu")
SPEC = LayerSpec(layer_idx=0, kv_source=0, num_heads=4, num_kv_heads=2, key_dim=DIM, value_dim=DIM, scale=0.3)
SIDECARS = [Sidecar(kind, unit=unit) for kind in ("bounds", "mean", "chunk_key") for unit in (0, 1, 4, 8)]
SIDECARS.append(Sidecar("low_rank", rank=3))


def make_cache() -> KVCache:
    cache = KVCache([SPEC], PAGES, PAGE_SIZE, torch.float32, CPU, SIDECARS)
    basis, _ = torch.linalg.qr(torch.randn(2, DIM, 3, generator=torch.Generator().manual_seed(1)))
    cache.sidecars.bases[SIDECARS[-1]] = {0: basis}
    for tensor in (*cache.pages(0), *cache.sidecars.of(0).values()):
        tensor.fill_(torch.nan)
    return cache


def write(cache: KVCache, keys: torch.Tensor, pages: list[int], start: int, stop: int) -> None:
    slots = [pages[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE for at in range(start, stop)]
    rows, key_cache, slot_mapping = keys[start:stop], cache.pages(0)[0], torch.tensor(slots)
    store_kv(rows, rows, *cache.pages(0), slot_mapping)
    written = WrittenPages.of([(pages, start, stop)], PAGE_SIZE, CPU)
    cache.sidecars.write(0, rows, key_cache, written, slot_mapping)


def rows_of(cache: KVCache, sidecar: Sidecar, pages: list[int], length: int) -> torch.Tensor:
    """The rows that stand for the first `length` tokens of these pages, in order."""
    rows = cache.sidecars.of(0)[sidecar][pages].flatten(0, 1)
    return rows[: -(-length // sidecar.tokens(PAGE_SIZE))]


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, PAGES * PAGE_SIZE), seed=st.integers(0, 999))
def test_what_is_written_in_pieces_is_what_is_written_at_once(length, seed):
    keys = torch.randn(length, 2, DIM, generator=torch.Generator().manual_seed(seed))
    choose = random.Random(seed)
    cuts = sorted({0, length, *(choose.randrange(length) for _ in range(12))})
    pieces, whole = make_cache(), make_cache()
    pages = choose.sample(range(PAGES), PAGES)
    for start, stop in pairwise(cuts):
        write(pieces, keys, pages, start, stop)
    others = choose.sample(range(PAGES), PAGES)
    write(whole, keys, others, 0, length)
    for sidecar in SIDECARS:
        found, expected = rows_of(pieces, sidecar, pages, length), rows_of(whole, sidecar, others, length)
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sidecar", SIDECARS, ids=lambda one: f"{one.kind}-{one.unit}")
def test_only_the_parts_that_are_written_to_are_made_anew(sidecar):
    """A page of 16 tokens, of which the tokens 5 and 6 come later than the ones before."""
    cache = make_cache()
    keys = torch.randn(7, 2, DIM, generator=torch.Generator().manual_seed(0))
    write(cache, keys, [3], 0, 5)
    table = cache.sidecars.of(0)[sidecar]
    table.fill_(torch.nan)
    write(cache, keys, [3], 5, 7)
    tokens = sidecar.tokens(PAGE_SIZE)
    touched = set(range(5 // tokens, 6 // tokens + 1))
    for page in range(PAGES):
        for row in range(PAGE_SIZE // tokens):
            made = page == 3 and row in touched
            assert table[page, row].isfinite().all() == made
            assert table[page, row].isnan().all() != made


def test_the_others_rest_where_only_some_are_kept():
    cache = make_cache()
    everything, mean = cache.sidecars, Sidecar("mean", unit=4)
    cache.sidecars = everything.only({mean})
    keys = torch.randn(PAGE_SIZE, 2, DIM, generator=torch.Generator().manual_seed(0))
    write(cache, keys, [2], 0, PAGE_SIZE)
    for sidecar, table in everything.of(0).items():
        assert table[2].isfinite().all() == (sidecar == mean)
        assert table[2].isnan().all() == (sidecar != mean)
