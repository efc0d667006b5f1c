"""tile_attention's Triton kernel in the interpreter, over caches that show only what is read."""

import pytest
import torch

from headway.kernels.tile_attention import gpu
from tests.kernels.tiled_chunk import make_tiles, random_initial

TILE = 8


@pytest.mark.parametrize("local", ["mixed", None])
@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (TILE - 1, 20), (TILE + 1, 33), (3 * TILE + 7, 80)])
def test_chunks(tokens, length, local):
    make_tiles(tokens, length, TILE, (1, 2, 1), local=local).check()


@pytest.mark.parametrize("lists", [(1, 1, 4), (2, 1, 1), (4, 2, 1)])
@pytest.mark.parametrize("column_lists", [2, None])
def test_lists_for_some_heads(lists, column_lists):
    make_tiles(2 * TILE + 3, 60, TILE, lists, column_lists=column_lists).check()


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (0, 7)], ids=str)
def test_some_of_the_lists(counts):
    make_tiles(20, 50, TILE, (2, 4, 1), counts=counts, sink_size=40).check()


@pytest.mark.parametrize("initial", [False, True], ids=["", "initial"])
@pytest.mark.parametrize("local", ["mixed", None])
def test_kinds(local, initial):
    chunk = make_tiles(20, 50, TILE, (2, 4, 1), local=local)
    kind = {"initial": random_initial(chunk)} if initial else {}
    chunk.check(softcap=1.5, sinks=torch.randn(4), **kind)
    chunk.check(**kind)


@pytest.mark.parametrize(("heads", "dim"), [((4, 4), 24), ((6, 2), 40), ((3, 1), 64)], ids=str)
def test_heads_and_head_sizes(heads, dim):
    make_tiles(19, 50, TILE, (1, heads[0], 1), heads, dim=dim).check(scale=dim**-0.5)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(272, 256), (48, 32)])
@pytest.mark.parametrize("latent", [True, False], ids=["latent", "two-caches"])
def test_values_of_another_head_size(key_dim, value_dim, latent):
    chunk = make_tiles(11, 40, TILE, (1, 1, 1), (5, 1), dim=key_dim, value_dim=value_dim, latent=latent)
    chunk.check(scale=0.05)


def test_several_blocks_of_rows_and_of_keys():
    """Tiles higher than a block; spans longer than a block of keys."""
    make_tiles(150, 400, 96, (1, 1, 1), span=45, counts=(4, 70), dim=16).check()


def test_head_first_cache_strided_query_and_fp16():
    make_tiles(20, 50, TILE, layout="HND", strided_query=True, page_size=4).check()
    make_tiles(20, 50, TILE, (1, 4, 2), dtype=torch.float16).check(atol=4e-3)


def test_rows_that_share_a_list_are_packed():
    kind = dict.fromkeys(("softcap", "sinks", "shared", "local", "spans", "columns", "initial"), False)
    rows = [gpu.tile_constants(64, 64, 32, 8, n, 64, 128, exact=False, **kind)["ROWS"] for n in (8, 32)]
    assert rows == [4, 1]
