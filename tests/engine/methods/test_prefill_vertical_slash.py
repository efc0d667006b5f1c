"""vertical_slash reads the columns and diagonals that matter, and exactly those."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headway.engine.methods.prefill import load
from headway.engine.selection.slashes import SPAN, band_cells, bands_of

from .layers import DIM, HEADS, KV_HEADS, randn
from .prefill_layers import chunks, prompt, read_counts

TILE, CHUNK = 16, 32
FORCED = {"dense_below": 0, "dense_tail": 0, "sink_size": 2, "window_size": 6, "tile": TILE}


def made(name: str = "vertical_slash", **wanted):
    schema, method = load(name)
    sizes = {"chunk": CHUNK, "probe": 8} if name == "vertical_slash" else {}
    return method(schema(**FORCED | sizes | wanted))


def each_head(rows):
    return rows.unsqueeze(1).expand(-1, HEADS, -1), rows.unsqueeze(1).expand(-1, KV_HEADS, -1)


@hypothesis_settings(deadline=None, max_examples=10)
@given(offset=st.integers(7, 90), length=st.sampled_from([128, 135, 160]), seed=st.integers(0, 99))
def test_a_diagonal_is_read_at_any_offset_and_little_beside_it(offset, length, seed):
    """Row i looks for the key `offset` tokens before it: no row of a later chunk may miss it."""
    rows = torch.nn.functional.normalize(randn(length, DIM, seed=seed), dim=-1)
    query, _ = each_head(20 * rows.roll(offset, 0))
    _, key = each_head(rows)
    counts, pairs = read_counts(made(columns=0, slashes=1), query, key)
    always, forced = read_counts(made("streaming"), query, key)
    ranked_from = -(-offset // SPAN) * SPAN + 2 + 8  # a chunk's end, for all of the probe's 8 rows to meet it
    sure = range(max(offset, (ranked_from - 1) // CHUNK * CHUNK), length // TILE * TILE)
    assert all(counts[:, i, i - offset].round().eq(1).all() for i in sure)
    assert (counts.round() >= always.round()).all()
    assert pairs - forced <= HEADS * length * (TILE + SPAN)


@hypothesis_settings(deadline=None, max_examples=6)
@given(column=st.integers(2, 60), seed=st.integers(0, 99))
def test_a_column_is_read_by_every_row_behind_it(column, seed):
    query, key, _ = prompt(128, seed)
    key[column] = 3 * query[:, :KV_HEADS].mean((0, 1)) + 2
    query = query * 0.1 + 2
    counts, pairs = read_counts(made(columns=1, slashes=0), query, key)
    _, forced = read_counts(made("streaming"), query, key)
    first = (column + CHUNK) // CHUNK * CHUNK  # the first chunk whose last queries can see it everywhere
    assert counts[:, first:, column].round().eq(1).all()
    assert pairs - forced <= HEADS * 128


def test_without_columns_and_diagonals_it_is_streaming():
    query, key, _ = prompt(103)
    counts, _ = read_counts(made(columns=0, slashes=0), query, key)
    streaming, _ = read_counts(made("streaming"), query, key)
    assert counts.round().equal(streaming.round())


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    tile=st.sampled_from([5, 8, 16, 48]), tiles=st.integers(1, 3), before=st.integers(0, 3), data=st.data()
)
def test_cells_hold_exactly_what_a_bands_diagonals_meet(tile, tiles, before, data):
    method = made(tile=tile, chunk=tile * tiles)
    query, key, value = prompt(tile * tiles * (before + 1))
    *_, (chunk, _) = chunks(method, query, key, value)
    span = torch.tensor(tile).gcd(torch.tensor(SPAN)).item()
    bands = data.draw(st.lists(st.integers(1, chunk.end // span), max_size=5, unique=True))
    count = (chunk.end - tile) // span
    found = band_cells(torch.tensor([[-1, *bands]], dtype=torch.int32), chunk, tile, count)[0]
    for place, start in enumerate(range(chunk.start, chunk.end, tile)):
        keys = {row - offset for row in range(start, start + tile) for band in bands
                for offset in range((band - 1) * span + 1, band * span + 1)}  # fmt: skip
        met = {at // span for at in keys if 0 <= at < start}
        assert set(found[place].nonzero().flatten().tolist()) == met


@given(length=st.integers(1, 70), span=st.sampled_from([1, 3, 16]))
def test_a_band_is_the_sum_of_its_diagonals(length, span):
    slash = torch.arange(1.0, length + 1).expand(2, -1)
    bands = bands_of(slash, span)
    for band in range(bands.shape[1]):
        inside = [o for o in range(length) if (band - 1) * span < o <= band * span]
        assert inside
        assert bands[:, band].eq(slash[0, inside].sum()).all()
    assert bands.sum() == slash.sum()


def test_a_chunk_must_be_whole_tiles():
    with pytest.raises(ValidationError, match="chunk must be a multiple of tile = 16, not 40"):
        made(chunk=40)
