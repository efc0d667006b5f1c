"""moba: the means, the query's own block, and what k says."""

import pytest
import torch

from headway.engine.errors import ConfigError
from headway.engine.methods.prefill.moba import Method, Settings

from .driver import PAGE_SIZE
from .layers import GROUP, randn, spec
from .prefill_layers import chunks, prompt, read_counts

TILE = 16
PLAIN = {"dense_below": 0, "dense_tail": 0, "sink_size": 0, "window_size": 0, "tile": TILE}


def blocks_read(query: torch.Tensor, key: torch.Tensor, block: int, top_k: int) -> torch.Tensor:
    """bool [Hq, N, N], by means over plain tensors."""
    length, heads = query.shape[:2]
    rows, places = torch.arange(length).unsqueeze(1), torch.arange(length)
    read = torch.zeros(heads, length, length, dtype=torch.bool)
    means = [part.double().mean(0).repeat_interleave(GROUP, 0) for part in key.split(block)]
    for start in range(0, length, TILE):
        tile = query[start : start + TILE].double().mean(0)
        own = start // block
        for head in range(heads):
            scores = torch.tensor([means[at][head] @ tile[head] for at in range(own)])
            best = scores.topk(min(top_k - 1, own)).indices.tolist()
            for at in best:
                read[head, start : start + TILE, at * block : (at + 1) * block] = True
    local = places >= rows // TILE * TILE // block * block
    local |= rows >= length // TILE * TILE  # a tile that the prompt's end cuts reads everything
    return (read | local) & (places <= rows)


@pytest.mark.parametrize("granules", [1, 2, 100])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("block", [4, PAGE_SIZE, 3 * PAGE_SIZE])
def test_the_blocks_with_the_best_means_are_read(block, top_k, granules):
    query, key, _ = prompt(7 * TILE + 5)
    method = Method(Settings(block=block, top_k=top_k, **PLAIN))
    counts, _ = read_counts(method, query, key, granules)
    assert counts.round().bool().equal(blocks_read(query, key, block, top_k))


def test_a_needle_is_read():
    query, key = 0.1 * randn(9 * TILE, 4, 16), 0.1 * randn(9 * TILE, 2, 16, seed=1)
    key[10], query[-20:-16] = 5.0, 5.0
    counts, _ = read_counts(Method(Settings(block=4, top_k=2, **PLAIN)), query, key, granules=100)
    assert counts[:, -20, 8:12].round().eq(1).all()


def test_lists_are_no_wider_than_the_blocks_there_are():
    method = Method(Settings(block=8, top_k=1000, **PLAIN))
    for view, query in chunks(method, *prompt(4 * TILE)):
        spans = method.select(query, view).spans
        assert spans is not None
        assert spans.shape[-1] == view.start // 8


@pytest.mark.parametrize("block", [3, 12])
def test_a_block_that_is_neither_pages_nor_part_of_one_is_refused(block):
    with pytest.raises(ConfigError, match=rf"^block: must divide cache\.page_size = 8 .* not {block}"):
        Method(Settings(block=block)).check([spec()], PAGE_SIZE)
