"""xattention: exact masses at stride 1, the share that is read, and what it costs to be coarse."""

import pytest
import torch
from pydantic import ValidationError

from headway.engine.methods.prefill.xattention import Method, Settings

from .layers import GROUP, randn
from .prefill_layers import prompt, read_counts

TILE = 16
PLAIN = {"dense_below": 0, "dense_tail": 0, "sink_size": 3, "window_size": 5, "tile": TILE}


def weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Exact causal attention, float64 [Hq, N, N]."""
    scores = torch.einsum("thd,nhd->htn", query.double(), key.double().repeat_interleave(GROUP, 1)) * 0.25
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)


@pytest.mark.parametrize("mass", [0.3, 0.6, 0.9])
def test_a_tile_reads_its_share_of_the_exact_attention_in_the_fewest_blocks(mass):
    query, key, _ = prompt(7 * TILE + 5)
    whole_blocks = PLAIN | {"sink_size": TILE, "window_size": TILE}
    counts, _ = read_counts(Method(Settings(stride=1, mass=mass, **whole_blocks)), query, key, granules=100)
    read, exact = counts.round(), weights(query, key)
    for start in range(0, 7 * TILE, TILE):
        rows = slice(start, start + TILE)
        caught = (exact[:, rows] * read[:, rows]).sum(-1).mean(-1)
        assert (caught >= mass - 1e-5).all()
        for head in range(query.shape[1]):
            chosen = [
                float(exact[head, rows, at : at + TILE].sum(-1).mean())
                for at in range(TILE, start - TILE, TILE)
                if read[head, start, at]
            ]
            assert not chosen or caught[head] - min(chosen) < mass + 1e-5


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_a_block_that_is_looked_at_is_read(stride):
    """The rows of one tile all look for the keys of one block, as a stripe on the antidiagonals shows."""
    query, key = 0.1 * randn(9 * TILE, 4, 16), 0.1 * randn(9 * TILE, 2, 16, seed=1)
    key[2 * TILE : 3 * TILE], query[6 * TILE : 7 * TILE] = 2.0, 2.0
    counts, pairs = read_counts(Method(Settings(stride=stride, mass=0.5, **PLAIN)), query, key, granules=100)
    assert counts[:, 6 * TILE : 7 * TILE, 2 * TILE : 3 * TILE].round().eq(1).all()
    assert pairs < 0.8 * counts.numel() / 2


@pytest.mark.parametrize("wanted", [{"stride": 3}, {"stride": 32}, {"mass": 1.02}, {"mass": 0.0}])
def test_refuses(wanted):
    with pytest.raises(ValidationError, match=next(iter(wanted))):
        Settings(**PLAIN | wanted)
