"""When a list that was made in an earlier step is made anew. Decided on the device, per sequence."""

import torch
from torch import Tensor

from headway.engine.selection.layer_view import LayerView


def every(layer: LayerView, stride: int) -> Tensor:
    """bool [B]: every `stride`-th decode step of a sequence, its first included."""
    return layer.step.steps % stride == 0


def turned(query: Tensor, layer: LayerView, similarity: float) -> Tensor:
    """bool [B]: sequences whose query has turned since the one that `keep_query` remembers.

    Compares the mean over the query heads, as Recycled Attention does; the rotary embedding is in it.

    Args:
        query: [B, Hq, D].
        similarity: the cosine up to which a query has turned; 1 or more: always.
    """
    before = layer.get("query")
    if before is None:
        return torch.ones_like(layer.step.fresh)
    return ~(torch.cosine_similarity(query.float().mean(1), before, dim=-1) > similarity)


def keep_query(query: Tensor, layer: LayerView, rows: Tensor) -> None:
    """Remember the queries of the sequences `rows` (bool [B]) for `turned`."""
    layer.keep("query", query.float().mean(1), rows)


def query_bytes(numbers: int) -> int:
    """What `keep_query` remembers of a sequence whose query heads have so many numbers each."""
    return torch.float32.itemsize * numbers


def anybody(rows: Tensor) -> bool:
    """Whether any row is True, where asking is free; True on a GPU, whose kernels skip the other rows."""
    return rows.device.type != "cpu" or bool(rows.any())


def count(layer: LayerView, rows: Tensor) -> None:
    """Add to the sequences' refresh counters."""
    stack = layer.step.stack
    stack.refreshes = stack.refreshes + rows
