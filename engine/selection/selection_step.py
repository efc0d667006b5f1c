"""SelectionStep: what of one batch is not dense, and the attention of a layer over such a batch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headway.engine.batch import Batch, Chunk
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection.group import attend
from headway.engine.selection.layer_view import GroupStep, LayerView
from headway.engine.selection.state import Name, SelectionState, Stack, Stacks
from headway.engine.sidecars import SidecarStore
from headway.kernels.paged_attention import AttentionPlan, paged_attention, plan


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of one method. `rows`: int64 [B], their rows in the batch; None: the whole batch."""

    method: DecodeMethod[Any]
    step: GroupStep
    rows: Tensor | None


@dataclass(frozen=True, slots=True)
class Observed:
    """A prompt's queries that its method must see: `rows` of the dense part's output."""

    method: DecodeMethod[Any]
    state: SelectionState
    plan: AttentionPlan
    rows: slice


@dataclass(frozen=True, slots=True)
class SelectionStep:
    """The groups of one batch beside its dense part.

    Attributes:
        dense: plan of the tokens in no group; None: there are none.
        dense_rows: int64, their rows in the batch; None: the whole batch.
    """

    groups: tuple[Group, ...]
    dense: AttentionPlan | None
    dense_rows: Tensor | None
    observed: tuple[Observed, ...]
    _before: list[tuple[dict[Name, Tensor], dict[Name, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        remembered = [group.step.stack.tensors for group in self.groups]
        remembered += [one.state.rows for one in self.observed]
        self._before.extend((tensors, dict(tensors)) for tensors in remembered)

    def attend(
        self, query: Tensor, spec: LayerSpec, key_cache: Tensor, value_cache: Tensor, store: SidecarStore
    ) -> Tensor:
        """Attention of one layer, [T, Hq, Dk] → [T, Hq, Dv]."""
        out = query.new_empty(*query.shape[:2], value_cache.shape[3])
        if self.dense is not None:
            part = query if self.dense_rows is None else query[self.dense_rows]
            result, lse = paged_attention(
                part, key_cache, value_cache, self.dense,
                scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks,
            )  # fmt: skip
            for one in self.observed:
                _observe(one, part, lse, LayerView(spec, key_cache, value_cache, _alone(one), store))
            if self.dense_rows is None:
                return result
            out[self.dense_rows] = result
        for group in self.groups:
            layer = LayerView(spec, key_cache, value_cache, group.step, store)
            if group.rows is None:
                return attend(query, layer, group.method)
            out[group.rows] = attend(query[group.rows], layer, group.method)
        return out

    def undo(self) -> None:
        """The step has failed in some layer: nothing of it is remembered, so that it can be repeated."""
        for tensors, before in self._before:
            tensors.clear()
            tensors.update(before)

    def done(self) -> None:
        """The step has run through all layers."""
        for one in self.observed:
            one.state.observed = one.plan.host_kv_lens[0]
        for group in self.groups:
            for member in group.step.stack.members:
                member.steps += 1


def _alone(one: Observed) -> GroupStep:
    device = one.plan.device
    nothing = torch.zeros(1, dtype=torch.float64, device=device)
    stack = Stack((one.state,), one.state.rows, nothing, nothing.clone())
    return GroupStep(one.plan, stack, torch.ones(1, dtype=torch.bool, device=device), nothing.long())


def _observe(one: Observed, query: Tensor, lse: Tensor, layer: LayerView) -> None:
    one.method.observe(query[one.rows], lse[one.rows], layer)


def is_selecting(chunk: Chunk) -> bool:
    """Whether a chunk is a decode step whose sequence selects."""
    return chunk.start >= chunk.sequence.exact


def selection_step(
    batch: Batch, whole: AttentionPlan, stacks: Stacks, page_size: int, device: torch.device
) -> SelectionStep | None:
    """Divide a batch into its dense part and decode groups; None: nothing selects or must be observed."""
    members: dict[DecodeMethod[Any], list[int]] = {}
    dense: list[int] = []
    watched = False
    for index, chunk in enumerate(batch.chunks):
        sequence = chunk.sequence
        if sequence.selection is None and sequence.decode is not None:
            sequence.selection = SelectionState()
        if is_selecting(chunk) and sequence.decode is not None:
            members.setdefault(sequence.decode, []).append(index)
        else:
            dense.append(index)
            watched |= _watched(chunk) is not None
    stacks.keep_only(members.keys())
    if not members and not watched:
        return None
    starts = whole.host_starts

    def rows_of(indices: Iterable[int]) -> Tensor | None:
        chunks = batch.chunks
        rows = [row for i in indices for row in range(starts[i], starts[i] + chunks[i].length)]
        return None if len(rows) == whole.num_tokens else torch.tensor(rows, device=device)

    groups = []
    for method, indices in members.items():
        rows = rows_of(indices)
        group_plan = whole if rows is None else _plan(batch, indices, page_size, device)
        states = tuple(state for i in indices if (state := batch.chunks[i].sequence.selection) is not None)
        steps = torch.tensor([state.steps for state in states], device=device)
        step = GroupStep(group_plan, stacks.of(method, states), steps == 0, steps)
        groups.append(Group(method, step, rows))
    dense_rows = rows_of(dense)
    dense_plan = None
    if dense:
        dense_plan = whole if dense_rows is None else _plan(batch, dense, page_size, device)
    return SelectionStep(
        tuple(groups), dense_plan, dense_rows, tuple(_observed(batch, dense, page_size, device))
    )


def _plan(batch: Batch, indices: Iterable[int], page_size: int, device: torch.device) -> AttentionPlan:
    chunks = [batch.chunks[i] for i in indices]
    return plan(
        [chunk.length for chunk in chunks],
        [chunk.end for chunk in chunks],
        [chunk.sequence.pages for chunk in chunks],
        page_size,
        device,
    )


def _watched(chunk: Chunk) -> tuple[int, int] | None:
    """The chunk's positions, half open, that its method must see."""
    start = max(chunk.start, chunk.sequence.observed_from)
    stop = min(chunk.end, chunk.sequence.num_prompt)
    return (start, stop) if start < stop else None


def _observed(batch: Batch, dense: list[int], page_size: int, device: torch.device) -> Iterable[Observed]:
    offset = 0
    for index in dense:
        chunk = batch.chunks[index]
        sequence, watched = chunk.sequence, _watched(chunk)
        if watched is not None and sequence.decode is not None and sequence.selection is not None:
            start, stop = (offset + position - chunk.start for position in watched)
            view = plan([1], [watched[1]], [sequence.pages], page_size, device)
            yield Observed(sequence.decode, sequence.selection, view, slice(start, stop))
        offset += chunk.length
