"""When a list that was made in an earlier step is made anew. Decided on the device, per sequence."""

import torch
from torch import Tensor

from headway.engine.selection.layer_view import LayerView


def every(layer: LayerView, stride: int) -> Tensor:
    """bool [B]: fresh sequences, and every `stride`-th step of the others."""
    return layer.step.fresh | (layer.step.steps % stride == 0)


def turned(query: Tensor, layer: LayerView, similarity: float, due: Tensor) -> Tensor:
    """Those of the `due` sequences (bool [B]) whose query has turned since its list was made.

    Compares the mean over the query heads, as Recycled Attention does, and remembers it where it says True;
    the rotary embedding is in both.

    Args:
        query: [B, Hq, D].
        similarity: the cosine below which a list is outdated; above 1: always.
    """
    mean = query.float().mean(1)
    before = layer.get("query")
    if before is None:
        refresh = due
    else:
        cosine = torch.cosine_similarity(mean, before, dim=-1)
        refresh = due & (layer.step.fresh | ~(cosine >= similarity))
    layer.keep("query", mean, refresh)
    return refresh


def anybody(rows: Tensor) -> bool:
    """Whether any row is True, where asking is free; True on a GPU, whose kernels skip the other rows."""
    return rows.device.type != "cpu" or bool(rows.any())


def count(layer: LayerView, rows: Tensor) -> None:
    """Add to the sequences' refresh counters."""
    layer.step.stack.refreshes += rows
