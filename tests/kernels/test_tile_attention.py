"""tile_attention and its reference against an fp64 oracle, over caches that show only what is read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import dispatch
from headway.kernels.paged_attention import paged_attention, plan
from headway.kernels.tile_attention import cpu_chunk, tile_attention
from headway.kernels.tile_attention.cpu_lists import TileLists
from headway.kernels.tile_attention.reference import read_mask
from tests.kernels.tiled_chunk import make_tiles, random_initial

TILE = 8
CHUNKS = [(1, 1), (1, 30), (TILE - 1, TILE - 1), (TILE, 41), (TILE + 1, 33), (3 * TILE + 7, 3 * TILE + 7)]
CHUNKS.append((3 * TILE + 7, 80))


@pytest.fixture(params=["cpu", "reference"])
def version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")
    return request.param


@pytest.mark.parametrize("local", ["mixed", "near", "all", None])
@pytest.mark.parametrize(("tokens", "length"), CHUNKS)
@pytest.mark.usefixtures("version")
def test_chunks(tokens, length, local):
    make_tiles(tokens, length, TILE, local=local).check()


@pytest.mark.parametrize(
    "lists", [(1, 1, 4), (1, 2, 1), (1, 4, 2), (2, 1, 1), (2, 2, 2), (4, 1, 2), (4, 4, 4)]
)
@pytest.mark.parametrize("column_lists", [1, 2, None])
@pytest.mark.usefixtures("version")
def test_lists_for_some_heads(lists, column_lists):
    make_tiles(3 * TILE + 7, 70, TILE, lists, column_lists=column_lists).check()


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (0, 7)], ids=str)
@pytest.mark.parametrize("sink_size", [0, 1, 60])
@pytest.mark.usefixtures("version")
def test_some_of_the_lists(sink_size, counts):
    """Sinks may reach beyond where the local part begins, and beyond the chunk."""
    make_tiles(20, 50, TILE, (2, 4, 1), counts=counts, sink_size=sink_size).check()


@pytest.mark.parametrize("local", ["mixed", None])
@pytest.mark.parametrize(
    "kind", [{}, {"softcap": 1.5}, {"sinks": True}, {"softcap": 1.5, "sinks": True}], ids=str
)
@pytest.mark.parametrize("initial", [False, True], ids=["", "initial"])
@pytest.mark.usefixtures("version")
def test_kinds(kind, local, initial):
    chunk = make_tiles(20, 50, TILE, (2, 4, 1), local=local, column_lists=2)
    kind = dict(kind)
    if "sinks" in kind:
        kind["sinks"] = torch.randn(4)
    if initial:
        kind["initial"] = random_initial(chunk)
    chunk.check(**kind)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("dim", [24, 64])
@pytest.mark.usefixtures("version")
def test_heads_and_head_sizes(heads, dim):
    for number in {1, *heads}:
        make_tiles(19, 50, TILE, (1, number, number), heads, dim=dim).check(scale=dim**-0.5)


@pytest.mark.parametrize("latent", [True, False], ids=["latent", "two-caches"])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.usefixtures("version")
def test_values_of_another_head_size(softcap, latent):
    chunk = make_tiles(19, 50, TILE, (1, 4, 1), (4, 1), dim=48, value_dim=32, latent=latent)
    chunk.check(softcap=softcap, initial=random_initial(chunk))


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pages", ["contiguous", "two-runs", "shuffled"])
@pytest.mark.usefixtures("version")
def test_layouts(pages, layout):
    make_tiles(21, 50, TILE, (1, 4, 2), pages=pages, layout=layout, strided_query=True, page_size=4).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("version")
def test_half_precision(dtype):
    chunk = make_tiles(20, 50, TILE, (2, 4, 1), dtype=dtype)
    chunk.check(atol=2e-2, sinks=torch.randn(4), initial=random_initial(chunk))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_anything(data):
    heads = data.draw(st.sampled_from([(4, 2), (3, 3), (4, 1)]), "heads")
    torch.manual_seed(data.draw(st.integers(0, 2**31), "seed"))
    tokens = data.draw(st.integers(1, 30), "tokens")
    number = st.sampled_from([1, *heads])
    chunk = make_tiles(
        tokens, tokens + data.draw(st.integers(0, 40), "before"), data.draw(st.integers(1, 33), "tile"),
        data.draw(st.tuples(number, number, number), "lists"), heads, data.draw(st.integers(1, 12), "span"),
        data.draw(st.tuples(st.integers(0, 4), st.integers(0, 9)), "counts"),
        data.draw(st.integers(1, 4), "column_lists"),
        data.draw(st.sampled_from(["mixed", "near", "all", None]), "local"),
        data.draw(st.integers(0, 20), "sink_size"), dim=8, page_size=data.draw(st.sampled_from([1, 3, 16])),
    )  # fmt: skip
    chunk.check(initial=random_initial(chunk) if data.draw(st.booleans(), "initial") else None)
    lists = [chunk.given[name] for name in ("local_from", "sink_size", "spans", "span", "columns")]
    seen = read_mask(chunk.plan, heads[0], chunk.tile, *lists)
    for head, row in np.ndindex(*seen.shape[:2]):
        assert seen[head, row].nonzero().flatten().tolist() == chunk.read(head, row)
    assert (copied(chunk) <= 1).all()


def copied(chunk):
    """int [H, tiles, N]: how often the CPU reads a key for a tile, its own rows aside."""
    lists = TileLists.of(chunk.plan, chunk.tile, **chunk.given)
    times = np.zeros((*lists.dense.shape, len(lists.slots)), dtype=int)
    order = np.argsort(lists.slots)
    for parts in (lists.common(range(len(lists.rows))), lists.of_tiles(range(len(lists.rows)))):
        for first, stop, slots in parts:
            for head, numbers in enumerate(slots):
                keys = order[np.searchsorted(lists.slots, numbers, sorter=order)]
                for tile in range(first, stop):
                    if not lists.dense[head, tile]:
                        np.add.at(times[head, tile], keys, 1)
    return times


def test_copies_in_parts(monkeypatch):
    monkeypatch.setattr(cpu_chunk, "COPY_BYTES", 9 * 2 * 32 * 4)
    for number in (1, 4):
        make_tiles(20, 90, TILE, (1, number, number), column_lists=2).check()
    with torch.inference_mode():
        make_tiles(20, 90, TILE).check()


@pytest.mark.usefixtures("version")
def test_everything_is_dense():
    chunk = make_tiles(27, 60, TILE, local="all", counts=(0, 0))
    sinks = torch.randn(4)
    dense = paged_attention(
        chunk.query, chunk.key_cache, chunk.value_cache, chunk.plan, scale=0.2, sinks=sinks
    )
    for one, other in zip(chunk.run(sinks=sinks), dense, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("version")
def test_two_passes_are_one():
    """First the local part, then the lists on top of it."""
    chunk = make_tiles(20, 50, TILE, (1, 2, 4), local="near", sink_size=0)
    whole = chunk.run()
    starts = 30 + TILE * torch.arange(3, dtype=torch.int32)[None]
    chunk.given["local_from"] = starts
    one = chunk.run()
    lists, chunk.given["local_from"] = dict(chunk.given), None
    chunk.given |= {"spans": None, "columns": None, "local_from": starts}
    first = chunk.run()
    chunk.given = lists | {"local_from": None}
    for both, expected in zip(chunk.run(initial=first), one, strict=True):
        torch.testing.assert_close(both, expected, atol=2e-5, rtol=2e-4)
    assert not torch.equal(whole[1], one[1])


@pytest.mark.usefixtures("version")
def test_writes_to_what_is_given():
    chunk = make_tiles(20, 50, TILE)
    out = torch.full((20, 8, 32), 7.0)[:, ::2]
    returned, _ = chunk.run(out=out)
    assert returned is out
    torch.testing.assert_close(out, chunk.run()[0])


INT = {"dtype": torch.int32}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"query": torch.zeros(5, 4, 8)}, "query"),
        ({"query": torch.zeros(5, 3, 16)}, "query"),
        ({"query": torch.zeros(4, 4, 16)}, "plan"),
        ({"query": torch.zeros(5, 4, 16, dtype=torch.float16)}, "dtype"),
        ({"value_cache": torch.zeros(2, 16, 1, 16)}, "value_cache"),
        ({"plan": plan([4, 1], [5, 5], [[0], [1]], 16, "cpu")}, "plan must be of one sequence"),
        ({"plan": plan([5], [5], [[2]], 16, "cpu")}, "plan"),
        ({"tile": 0}, "tile"),
        ({"span": 0}, "span"),
        ({"sink_size": -1}, "sink_size"),
        ({"local_from": torch.zeros(1, 3)}, "local_from"),
        ({"local_from": torch.zeros(1, 2, **INT)}, "local_from"),
        ({"local_from": torch.zeros(3, 3, **INT)}, "local_from"),
        ({"local_from": torch.zeros(3, **INT)}, "local_from"),
        ({"spans": torch.zeros(1, 3, **INT)}, "spans"),
        ({"spans": torch.zeros(1, 1, 2, **INT)}, "spans"),
        ({"columns": torch.zeros(1, 4, 2, **INT)}, "columns"),
        ({"columns": torch.zeros(1, 0, 2, **INT)}, "columns"),
        ({"columns": torch.zeros(1, 1, 2, dtype=torch.int64)}, "columns"),
        ({"softcap": 0.0}, "softcap"),
        ({"sinks": torch.zeros(2)}, "sinks"),
        ({"initial": (torch.zeros(5, 4, 8), torch.zeros(5, 4))}, "initial"),
        ({"initial": (torch.zeros(5, 4, 16), torch.zeros(4, 5))}, "initial"),
        ({"out": torch.zeros(5, 4, 8)}, "out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refuses(change, names):
    good = {
        "query": torch.zeros(5, 4, 16),
        "key_cache": torch.zeros(2, 16, 2, 16),
        "value_cache": torch.zeros(2, 16, 2, 16),
        "plan": plan([5], [9], [[1]], 16, "cpu"),
        "tile": 2,
        "scale": 1.0,
        "local_from": torch.zeros(1, 3, **INT),
    }
    tile_attention(**good)
    with pytest.raises(ValueError, match=names):
        tile_attention(**{**good, **change})
