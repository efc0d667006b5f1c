"""Pairs that a prefill selection reads, counted without a mask."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.selection.pairs import pairs
from headway.kernels.paged_attention import plan
from headway.kernels.tile_attention import reference


@st.composite
def arguments(draw: st.DrawFn) -> tuple[object, ...]:
    """What `tile_attention` takes: lists without a key twice, but with keys that it reads once or not."""
    page, tile, span = draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    length = draw(st.integers(1, 40))
    tokens = draw(st.integers(1, length))
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (2, 3)]))
    heads, tiles = kv_heads * group, -(-tokens // tile)
    some_heads = st.sampled_from([1, kv_heads, heads])
    choose = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def numbers(low: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, length, shape, generator=choose, dtype=torch.int32)

    local = numbers(0, draw(some_heads), tiles) if draw(st.booleans()) else None
    spans = columns = None
    if draw(st.booleans()):  # every other run of `span` keys, behind an odd start, so that none overlap
        spans = numbers(0, draw(some_heads), tiles, 1) % 3
        runs = torch.arange(length // (2 * span) + 1, dtype=torch.int32) * (2 * span)
        spans = torch.where(torch.rand(*spans.shape[:2], len(runs), generator=choose) < 0.6, spans + runs, -1)
    elif draw(st.booleans()):
        lists = draw(st.integers(1, tiles))
        lists = -(-tiles // -(-tiles // lists))
        shape = draw(some_heads), lists, length
        columns = torch.rand(shape, generator=choose).argsort(-1).int()
        columns = torch.where(torch.rand(shape, generator=choose) < 0.5, columns, -1)
    batch = plan([tokens], [length], [list(range(-(-length // page)))], page, "cpu")
    return batch, heads, tile, local, draw(st.integers(0, 9)), spans, span, columns


@settings(max_examples=150, deadline=None)
@given(arguments())
def test_as_many_as_the_reference_reads(arguments: tuple[object, ...]) -> None:
    assert pairs(*arguments) == reference.read_mask(*arguments).sum()
