"""Attention of one decode group in one layer: ask the method, read what it selects, count what was read."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod, Part
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.head_route import HeadRun, of_heads
from headway.engine.selection.layer_view import LayerView
from headway.kernels.paged_attention import AttentionPlan, plan
from headway.kernels.selected_attention import selected_attention

Attended = tuple[Tensor, Tensor]
"""out [B, Hq, Dv] and lse fp32 [B, Hq]."""


def attend(query: Tensor, layer: LayerView, method: DecodeMethod[Any]) -> Tensor:
    """Attention of one query per sequence, [B, Hq, Dk] → [B, Hq, Dv], over what the method selects."""
    parts = method.parts(layer)
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
        return layer.cache.attend_own(query, layer.plan)[0]
    selection = method.select(query, layer)
    layer.step.handed[layer.spec.layer_idx] = selection
    _count(layer, _tokens_read(selection, layer), share)
    own = method.attend(query, layer, selection)
    return attend_selected(query, layer, selection)[0] if own is None else own


def attend_selected(query: Tensor, layer: LayerView, selection: DecodeSelection) -> Attended:
    """Attention over a selection; what it marks as dense reads everything."""
    if selection.dense is None:
        return _selected(query, layer, selection)
    if query.device.type == "cpu":  # looking at the mask is free here
        return _split(query, layer, selection, selection.dense)
    everything = torch.arange(layer.plan.max_pages, dtype=torch.int32, device=query.device)
    if selection.dense.ndim == 2:
        return _either(query, layer, selection, selection.dense, everything)
    out, lse = _selected(query, layer, selection, active=~selection.dense)
    whole = DecodeSelection(everything.expand(len(query), 1, -1).contiguous(), layer.page_size)
    return _selected(query, layer, whole, active=selection.dense, into=(out, lse))


def _either(
    query: Tensor, layer: LayerView, selection: DecodeSelection, dense: Tensor, everything: Tensor
) -> Attended:
    """By KV heads, `dense` [B, Hkv], of which the others have an empty list of pages."""
    out, lse = _selected(query, layer, selection)
    pages = torch.where(dense.unsqueeze(2), everything, -1)
    whole, whole_lse = _selected(query, layer, DecodeSelection(pages, layer.page_size))
    dense = dense.repeat_interleave(query.shape[1] // dense.shape[1], 1)
    return torch.where(dense.unsqueeze(2), whole, out), torch.where(dense, whole_lse, lse)


def _split(query: Tensor, layer: LayerView, selection: DecodeSelection, dense: Tensor) -> Attended:
    """Selected and dense attention apart, each only where it is wanted."""
    if not dense.any():
        return _selected(query, layer, selection)
    if dense.all():
        return layer.cache.attend_own(query, layer.plan)
    by_head = dense.view(len(query), -1).expand(-1, layer.spec.num_kv_heads)
    out, lse = _selected(query, layer, selection, active=~by_head.all(1))
    for rows, run in _dense_runs(by_head, layer.spec):
        out[rows, run.heads], lse[rows, run.heads] = layer.cache.of_heads(run).attend_own(
            query[rows, run.heads], _of_rows(layer.plan, rows)
        )
    return out, lse


def _dense_runs(dense: Tensor, spec: LayerSpec) -> Iterator[tuple[list[int], HeadRun]]:
    """Neighbouring KV heads that read everything for the same rows of bool [B, Hkv], and those rows."""
    columns = dense.T.tolist()
    for marks, members in groupby(range(len(columns)), columns.__getitem__):
        first, *_ = found = list(members)
        kv_heads = slice(first, first + len(found))
        rows = [row for row, marked in enumerate(marks) if marked]
        if rows:
            shape, heads = of_heads(spec, kv_heads)
            yield rows, HeadRun(shape, kv_heads, heads, streams=False, whole=len(found) == len(columns))


def _of_rows(whole: AttentionPlan, rows: Sequence[int]) -> AttentionPlan:
    """The plan of these sequences alone."""
    if len(rows) == len(whole.host_kv_lens):
        return whole
    return plan(
        [1] * len(rows),
        [whole.host_kv_lens[i] for i in rows],
        [whole.host_tables[i] for i in rows],
        whole.page_size,
        whole.device,
    )


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
    if selection.dense is None:
        return counts
    by_head = selection.dense.view(len(lens), -1)
    return torch.where(by_head, lens.unsqueeze(1), counts.unsqueeze(1)).double().mean(1)


def _count(layer: LayerView, read: Sequence[int] | Tensor, share: float) -> None:
    """Add to the sequences' counters what a part has read; what only the device knows waits there."""
    stack = layer.step.stack
    if isinstance(read, Tensor):
        stack.attended = stack.attended + read * share
        return
    for member, tokens in zip(stack.members, read, strict=True):
        member.attended += tokens * share
