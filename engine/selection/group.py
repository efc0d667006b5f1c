"""Attention of one decode group in one layer: ask the method, read what it selects, count what was read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headway.engine.methods.decode.base import DecodeMethod, Part
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.kernels.paged_attention import paged_attention, plan
from headway.kernels.selected_attention import selected_attention

Attended = tuple[Tensor, Tensor]
"""out [B, Hq, Dv] and lse fp32 [B, Hq]."""


def attend(query: Tensor, layer: LayerView, method: DecodeMethod[Any]) -> Tensor:
    """Attention of one query per sequence, [B, Hq, Dk] → [B, Hq, Dv], over what the method selects."""
    everything = layer.spec.layer_idx < method.settings.dense_layers
    parts = (Part(layer, slice(None), None),) if everything else method.parts(layer)
    for member, length in zip(layer.step.stack.members, layer.plan.host_kv_lens, strict=True):
        member.layer_steps += 1
        member.context += length
    if len(parts) == 1:
        return _attend_part(query, parts[0], 1)
    out = query.new_empty(*query.shape[:2], layer.value_cache.shape[3])
    for part in parts:
        share = part.layer.spec.num_heads / layer.spec.num_heads
        out[:, part.heads] = _attend_part(query[:, part.heads], part, share)
    return out


def _attend_part(query: Tensor, part: Part, share: float) -> Tensor:
    """`share`: what the part is of its layer."""
    layer, method = part.layer, part.method
    if method is None:
        _count(layer, layer.plan.host_kv_lens, share)
        return _dense(query, layer)[0]
    selection = method.select(query, layer)
    layer.step.handed[layer.spec.layer_idx] = selection
    _count(layer, _tokens_read(selection, layer), share)
    own = method.attend(query, layer, selection)
    return attend_selected(query, layer, selection)[0] if own is None else own


def attend_selected(query: Tensor, layer: LayerView, selection: DecodeSelection) -> Attended:
    """Attention over a selection; rows that it marks as dense read everything."""
    if selection.dense is None:
        return _selected(query, layer, selection)
    if query.device.type == "cpu":  # looking at the mask is free here
        return _split(query, layer, selection, selection.dense)
    out, lse = _selected(query, layer, selection, active=~selection.dense)
    everything = torch.arange(layer.plan.max_pages, dtype=torch.int32, device=query.device)
    whole = DecodeSelection(everything.expand(len(query), 1, -1).contiguous(), layer.page_size)
    return _selected(query, layer, whole, active=selection.dense, into=(out, lse))


def _split(query: Tensor, layer: LayerView, selection: DecodeSelection, dense: Tensor) -> Attended:
    rows = dense.nonzero().flatten()
    if len(rows) == 0:
        return _selected(query, layer, selection)
    whole = layer.plan
    if len(rows) == len(query):
        return _dense(query, layer)
    out, lse = _selected(query, layer, selection, active=~dense)
    picked = rows.tolist()
    sub = plan(
        [1] * len(picked),
        [whole.host_kv_lens[i] for i in picked],
        [whole.host_tables[i] for i in picked],
        whole.page_size,
        whole.device,
    )
    spec = layer.spec
    out[rows], lse[rows] = paged_attention(
        query[rows], layer.key_cache, layer.value_cache, sub,
        scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks,
    )  # fmt: skip
    return out, lse


def _dense(query: Tensor, layer: LayerView) -> Attended:
    spec = layer.spec
    return paged_attention(
        query, layer.key_cache, layer.value_cache, layer.plan,
        scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks,
    )  # fmt: skip


def _selected(
    query: Tensor,
    layer: LayerView,
    selection: DecodeSelection,
    active: Tensor | None = None,
    into: Attended | None = None,
) -> Attended:
    spec = layer.spec
    if active is not None and into is None:
        shape = (*query.shape[:2], layer.value_cache.shape[3])
        into = query.new_zeros(shape), query.new_zeros(shape[:2], dtype=torch.float32)
    out, lse = into or (None, None)
    return selected_attention(
        query, layer.key_cache, layer.value_cache, layer.plan, selection.indices, selection.unit,
        scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks, active=active, out=out, lse=lse,
    )  # fmt: skip


def _tokens_read(selection: DecodeSelection, layer: LayerView) -> Sequence[int] | Tensor:
    """By each sequence, on the host where the host knows, else a tensor [B]."""
    most = selection.indices.shape[2] * selection.unit
    if selection.counts is None and selection.dense is None:
        return [min(length, most) for length in layer.plan.host_kv_lens]
    lens = layer.step.kv_lens
    counts = lens.clamp_max(most) if selection.counts is None else torch.minimum(selection.counts, lens)
    return counts if selection.dense is None else torch.where(selection.dense, lens, counts)


def _count(layer: LayerView, read: Sequence[int] | Tensor, share: float) -> None:
    """Add to the sequences' counters what a part has read; what only the device knows waits there."""
    stack = layer.step.stack
    if isinstance(read, Tensor):
        stack.attended += read * share
        return
    for member, tokens in zip(stack.members, read, strict=True):
        member.attended += tokens * share
