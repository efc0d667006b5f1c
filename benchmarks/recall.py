"""How much of the exact attention a selection catches, beside the best that its budget could."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from headway.engine.selection import group
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.kernels.unit_scores import unit_scores


@contextmanager
def watched(enabled: bool = True) -> Iterator[list[float]]:
    """Collects, per layer and step that selects, the mass caught over the mass of the exact top-k."""
    original = group.attend_selected
    found: list[float] = []
    if not enabled:
        yield found
        return

    def attend_selected(query: Tensor, layer: LayerView, selection: DecodeSelection) -> group.Attended:
        found.append(_recall(query, layer, selection))
        return original(query, layer, selection)

    group.attend_selected = attend_selected
    try:
        yield found
    finally:
        group.attend_selected = original


def _recall(query: Tensor, layer: LayerView, selection: DecodeSelection) -> float:
    spec = layer.spec
    if selection.dense is not None and bool(selection.dense.all()):
        return 1.0
    scores = unit_scores(query, layer.key_cache, layer.plan, scale=spec.scale, softcap=spec.softcap)
    mass = scores.softmax(-1)  # [1, Hq, N]
    heads, width = mass.shape[1:]
    lists = selection.indices.repeat_interleave(heads // selection.indices.shape[1], 1).long()
    read = torch.zeros(1, heads, width + selection.unit, dtype=torch.bool, device=mass.device)
    tokens = lists.unsqueeze(-1) * selection.unit + torch.arange(selection.unit, device=mass.device)
    tokens = torch.where((lists >= 0).unsqueeze(-1), tokens, width).flatten(2)
    read.scatter_(-1, tokens.clamp_max(width), value=True)
    caught = (mass * read[..., :width]).sum(-1)
    counts = read[..., :width].sum(-1, keepdim=True)
    best = mass.sort(-1, descending=True).values.cumsum(-1).gather(-1, counts - 1).squeeze(-1)
    return float((caught / best).mean())


def mass_recall(found: list[float]) -> float:
    """Mean over layers and steps."""
    return sum(found) / len(found) if found else 1.0
