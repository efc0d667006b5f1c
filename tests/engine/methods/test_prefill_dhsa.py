"""dhsa: where chunks begin, what stands for them, and which are read."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headway.engine.methods.prefill.dhsa import Method, Settings, chunk_vectors

from .layers import GROUP, KV_HEADS, randn
from .prefill_layers import prompt, read_counts

TILE = 16
PLAIN = {"dense_below": 0, "dense_tail": 0, "sink_size": 0, "window_size": 0, "tile": TILE}


def chunked(units: torch.Tensor, per_tile: int, chunks: int) -> list[tuple[int, int]]:
    """First and last unit + 1 of every chunk, by sorting cosines in fp64."""
    found = []
    for start in range(0, len(units), per_tile):
        rows = units[start : start + per_tile].double().flatten(1)
        rows = rows / rows.norm(dim=1, keepdim=True)
        likeness = [(float(rows[at] @ rows[at - 1]), at) for at in range(1, per_tile)]
        cuts = sorted(at for _, at in sorted(likeness)[: chunks - 1])
        edges = [0, *cuts, per_tile]
        found += [(start + first, start + last) for first, last in pairwise(edges)]
    return found


@hypothesis_settings(deadline=None)
@given(
    tiles=st.integers(0, 4), per_tile=st.integers(1, 8), chunks=st.integers(1, 9), seed=st.integers(0, 999)
)
def test_chunks_begin_at_the_dips_and_weigh_the_root_of_their_length(tiles, per_tile, chunks, seed):
    units = randn(tiles * per_tile, KV_HEADS, 16, seed=seed)
    vectors, owner = chunk_vectors(units, per_tile, chunks)
    expected = chunked(units, per_tile, chunks)
    assert owner.tolist() == [at for at, (first, last) in enumerate(expected) for _ in range(first, last)]
    for vector, (first, last) in zip(vectors, expected, strict=False):
        mean = units[first:last].double().mean(0)
        torch.testing.assert_close(vector.double(), mean * (last - first) ** 0.5, atol=1e-5, rtol=1e-5)


def test_like_keys_stay_together():
    one, other = randn(2, KV_HEADS, 16)
    vectors, owner = chunk_vectors(torch.stack([one] * 5 + [other] * 3), 8, 2)
    assert owner.tolist() == [0] * 5 + [1] * 3
    torch.testing.assert_close(vectors[0], one * 5**0.5)


@pytest.mark.parametrize("granules", [1, 100])
@pytest.mark.parametrize("budget", [4, 24])
def test_the_best_chunks_are_read_up_to_the_budget(budget, granules):
    query, key, _ = prompt(6 * TILE + 5)
    method = Method(Settings(budget=budget, unit=4, chunks=2, **PLAIN))
    counts, _ = read_counts(method, query, key, granules)
    units = key[: 6 * TILE].unflatten(0, (-1, 4)).mean(1)
    pieces = chunked(units, TILE // 4, 2)
    for start in range(TILE, 6 * TILE, TILE):
        tile = query[start : start + TILE].double().mean(0)
        for head in range(query.shape[1]):
            scored = [
                (
                    -float(units[first:last, head // GROUP].double().sum(0) @ tile[head])
                    / (last - first) ** 0.5,
                    at,
                )
                for at, (first, last) in enumerate(pieces)
                if last * 4 <= start
            ]
            tokens = [
                at for _, piece in sorted(scored) for at in range(4 * pieces[piece][0], 4 * pieces[piece][1])
            ]
            read = counts[head, start, :start].round().nonzero().flatten().tolist()
            assert read == sorted(tokens[:budget])


@pytest.mark.parametrize("wanted", [{"unit": 3}, {"unit": 32}])
def test_refuses(wanted):
    with pytest.raises(ValidationError, match="unit must divide tile = 16"):
        Settings(**PLAIN | wanted)
