"""headway: which runs of keys a tile reads, and that nothing behind the tile has a say."""

import pytest
import torch
from pydantic import ValidationError

from headway.engine.methods.prefill import headway
from headway.engine.methods.prefill.headway import Method, Settings
from headway.engine.selection.settings import of_requests

from .prefill_layers import chunks, logits, prompt, read_counts

TILE, BLOCK, BUDGET = 16, 4, 12
PLAIN = {"dense_below": 0, "dense_tail": 0, "sink_size": 0, "window_size": 0, "tile": TILE}


def made(**wanted):
    return Method(Settings(**PLAIN | {"block": BLOCK, "budget": BUDGET} | wanted))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_runs_with_the_highest_sums_are_read(softcap):
    query, key, _ = prompt(6 * TILE)
    query *= 12
    counts, _ = read_counts(made(), query, key, granules=100, softcap=softcap)
    for start in range(TILE, 6 * TILE, TILE):
        mean = query[start : start + TILE].mean(0, keepdim=True)
        sums = logits(mean, key[:start], softcap)[:, 0].exp().unflatten(-1, (-1, BLOCK)).sum(-1)
        for head, order in enumerate(sums.argsort(descending=True).tolist()):
            tokens = [BLOCK * run + at for run in order[: BUDGET // BLOCK] for at in range(BLOCK)]
            assert counts[head, start, :start].round().nonzero().flatten().tolist() == sorted(tokens)


@pytest.mark.parametrize("piece", [BLOCK, 5 * BLOCK, 2 * TILE])
@pytest.mark.parametrize("granules", [1, 2, 100])
def test_keys_that_are_scored_piece_by_piece_are_chosen_alike(monkeypatch, piece, granules):
    query, key, value = prompt(6 * TILE)
    spans = []
    for size in (headway.PIECE, piece):
        monkeypatch.setattr(headway, "PIECE", size)
        views = chunks(made(), query, key, value, granules=granules)
        spans.append([made().select(rows, view).spans for view, rows in views])
    assert all(map(torch.equal, *spans))


@pytest.mark.parametrize("block", [1, 8, TILE])
def test_a_loud_key_behind_a_tile_changes_nothing_for_it(block):
    """Its score is so high that beside it all others are none, to fp32."""
    query, key, value = prompt(6 * TILE)
    query = query.abs()
    before = 4 * TILE
    louder = key.clone()
    louder[before + TILE // 2] = 1e4
    method, spans = made(block=block, window_size=6), []
    for keys in (key, louder):
        ((view, rows),) = chunks(method, query, keys, value, granules=100)
        spans.append(method.select(rows, view).spans[:, : before // TILE])
    assert spans[1].equal(spans[0])


@pytest.mark.parametrize("block", [3, 32, 1024])
def test_a_block_that_may_straddle_a_tile_is_refused(block):
    with pytest.raises(ValidationError, match=f"block must divide tile = {TILE}, not be {block}"):
        made(block=block)


def test_no_request_sets_the_block():
    assert "block" not in of_requests(Settings)
    assert "budget" in of_requests(Settings)
