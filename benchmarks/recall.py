"""How much of the exact attention a selection catches, beside the best that its budget could.

Of KV heads that a method lets read near tokens only, because it takes a share of their attention to be there:
how often that was false.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.engine.methods.decode import AnyMethod
from headway.engine.selection import group
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.kernels.unit_scores import unit_scores


@dataclass(frozen=True, slots=True)
class Caught:
    """What one layer's selection came to in one step.

    Attributes:
        recall: mass caught over the mass of the exact top-k.
        local: KV heads that were taken for local, where a method decides that by a `threshold`.
        false_local: those of them of which some query head has less of its attention there.
    """

    recall: float
    local: int = 0
    false_local: int = 0


@contextmanager
def watched(method: AnyMethod, enabled: bool = True) -> Iterator[list[Caught]]:
    """Collects what the selections of this method catch, per layer and step that selects."""
    original = group.attend_selected
    threshold = getattr(method.settings, "threshold", None)
    found: list[Caught] = []
    if not enabled:
        yield found
        return

    def attend_selected(query: Tensor, layer: LayerView, selection: DecodeSelection) -> group.Attended:
        found.append(_caught(query, layer, selection, threshold))
        return original(query, layer, selection)

    group.attend_selected = attend_selected
    try:
        yield found
    finally:
        group.attend_selected = original


def _caught(query: Tensor, layer: LayerView, selection: DecodeSelection, threshold: float | None) -> Caught:
    spec, dense = layer.spec, selection.dense
    if dense is not None and bool(dense.all()):
        return Caught(1.0)
    scores = unit_scores(query, layer.key_cache, layer.plan, scale=spec.scale, softcap=spec.softcap)
    mass = scores.softmax(-1)  # [1, Hq, N]
    heads, width = mass.shape[1:]
    lists = selection.indices.repeat_interleave(heads // selection.indices.shape[1], 1).long()
    read = torch.zeros(1, heads, width + selection.unit, dtype=torch.bool, device=mass.device)
    tokens = lists.unsqueeze(-1) * selection.unit + torch.arange(selection.unit, device=mass.device)
    tokens = torch.where((lists >= 0).unsqueeze(-1), tokens, width).flatten(2)
    read.scatter_(-1, tokens.clamp_max(width), value=True)
    if dense is not None:
        read |= dense.view(1, -1).repeat_interleave(heads // dense.numel(), 1).unsqueeze(-1)
    caught = (mass * read[..., :width]).sum(-1)
    counts = read[..., :width].sum(-1, keepdim=True)
    best = mass.sort(-1, descending=True).values.cumsum(-1).gather(-1, counts - 1).squeeze(-1)
    recall = float((caught / best).mean())
    if dense is None or threshold is None:
        return Caught(recall)
    shares = caught.view(spec.num_kv_heads, -1).amin(1)[~dense[0]]
    return Caught(recall, len(shares), int((shares < threshold).sum()))


def mass_recall(found: list[Caught]) -> float:
    """Mean over layers and steps."""
    return sum(each.recall for each in found) / len(found) if found else 1.0


def false_local(found: list[Caught]) -> str | None:
    """How many heads were wrongly taken for local, of how many that were; None: there were none."""
    local = sum(each.local for each in found)
    return f"{sum(each.false_local for each in found)} of {local}" if local else None
