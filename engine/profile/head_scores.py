"""Scores of heads as one table [layers, heads]: NaN where a layer has fewer heads than the widest."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.layer_spec import LayerSpec

Head = tuple[int, int]
"""Layer and head."""


def table(rows: Sequence[Tensor]) -> Tensor:
    """Float32 [layers, widest …] of one row [heads, …] for each layer, NaN in what is not there."""
    sizes = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)]
    padded = []
    for row in rows:
        missing = [(0, size - own) for size, own in zip(sizes, row.shape, strict=True)]
        padded.append(
            pad(row.float(), [side for pair in reversed(missing) for side in pair], value=float("nan"))
        )
    return torch.stack(padded)


def by_kv_head(query_heads: Tensor, specs: Sequence[LayerSpec]) -> Tensor:
    """The maximum of each KV head's group: [layers, query heads] → [layers, KV heads].

    A KV head serves its whole group, so the neediest of its query heads decides.
    """
    return table(
        [query_heads[spec.layer_idx, : spec.num_heads].view(spec.num_kv_heads, -1).amax(1) for spec in specs]
    )


def heads_from(scores: Tensor, threshold: float) -> list[Head]:
    """Heads that score at least `threshold`, the highest first."""
    order = scores.nan_to_num(-torch.inf).flatten().sort(descending=True, stable=True).indices.tolist()
    width = scores.shape[1]
    return [(place // width, place % width) for place in order if scores.flatten()[place] >= threshold]


def rank_correlation(draws: Sequence[Tensor]) -> float | None:
    """Mean over all pairs of Spearman's correlation; None for fewer than two draws."""
    ranks = [_ranks(draw[~draw.isnan()]) for draw in draws]
    pairs = [
        float(torch.corrcoef(torch.stack(pair))[0, 1].nan_to_num(0.0)) for pair in combinations(ranks, 2)
    ]
    return sum(pairs) / len(pairs) if pairs else None


def _ranks(values: Tensor) -> Tensor:
    """Places in ascending order; equal values share the mean of theirs."""
    below = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1)
    return (below + (equal - 1) / 2).double()
