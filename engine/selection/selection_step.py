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
from headway.engine.selection.observed import Observed, is_observed, observed_in
from headway.engine.selection.prompt_chunk import PromptChunk, is_selected
from headway.engine.selection.state import Name, SelectionState, Stacks
from headway.engine.sidecars import SidecarStore
from headway.kernels.paged_attention import AttentionPlan, paged_attention, plan


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of one method. `rows`: int64 [B], their rows in the batch; None: the whole batch."""

    method: DecodeMethod[Any]
    step: GroupStep
    rows: Tensor | None


@dataclass(frozen=True, slots=True)
class SelectionStep:
    """The decode groups and the selected prompt chunks of one batch beside its dense part.

    Attributes:
        dense: plan of the tokens in neither; None: there are none.
        dense_rows: int64, their rows in the batch; None: the whole batch.
        observed: what of the dense part is shown to decode methods.
    """

    groups: tuple[Group, ...]
    prompts: tuple[PromptChunk, ...]
    dense: AttentionPlan | None
    dense_rows: Tensor | None
    observed: tuple[Observed, ...]
    _before: list[tuple[dict[Name, Tensor], dict[Name, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        remembered = [group.step.stack.tensors for group in self.groups]
        remembered += [one.state.rows for one in self._all_observed()]
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
                one.show(part, lse, spec, key_cache, value_cache, store)
            if self.dense_rows is None:
                return result
            out[self.dense_rows] = result
        for prompt in self.prompts:
            out[prompt.rows] = prompt.attend(query[prompt.rows], spec, key_cache, value_cache, store)
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
        for one in self._all_observed():
            one.state.observed = one.plan.host_kv_lens[0]
        for prompt in self.prompts:
            prompt.done()
        for group in self.groups:
            for member in group.step.stack.members:
                member.steps += 1

    def _all_observed(self) -> Iterable[Observed]:
        yield from self.observed
        for prompt in self.prompts:
            if prompt.observed is not None:
                yield prompt.observed


def is_selecting(chunk: Chunk) -> bool:
    """Whether a chunk is a decode step whose sequence selects."""
    return chunk.start >= chunk.sequence.exact


def selection_step(
    batch: Batch, whole: AttentionPlan, stacks: Stacks, page_size: int, device: torch.device
) -> SelectionStep | None:
    """Divide a batch; None: it is dense, and nothing must be observed."""
    members: dict[DecodeMethod[Any], list[int]] = {}
    prompts: list[int] = []
    dense: list[int] = []
    for index, chunk in enumerate(batch.chunks):
        sequence = chunk.sequence
        if sequence.selection is None and sequence.decode is not None:
            sequence.selection = SelectionState()
        if is_selecting(chunk) and sequence.decode is not None:
            members.setdefault(sequence.decode, []).append(index)
        elif is_selected(chunk):
            prompts.append(index)
        else:
            dense.append(index)
    stacks.keep_only(members.keys())
    if not members and not prompts and not any(is_observed(batch.chunks[index]) for index in dense):
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
        tuple(groups),
        tuple(_prompts(batch, prompts, whole, page_size, device)),
        dense_plan,
        dense_rows,
        tuple(_observed(batch, dense, page_size, device)),
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


def _prompts(
    batch: Batch, prompts: list[int], whole: AttentionPlan, page_size: int, device: torch.device
) -> Iterable[PromptChunk]:
    for index in prompts:
        chunk = batch.chunks[index]
        sequence = chunk.sequence
        if sequence.prefill is not None:
            own = whole if len(batch.chunks) == 1 else _plan(batch, [index], page_size, device)
            observed = observed_in(chunk, 0, page_size, device)
            yield PromptChunk(
                sequence.prefill, own, whole.rows(index), sequence.num_prompt, observed, sequence.prompt_reads
            )


def _observed(batch: Batch, dense: list[int], page_size: int, device: torch.device) -> Iterable[Observed]:
    offset = 0
    for index in dense:
        chunk = batch.chunks[index]
        observed = observed_in(chunk, offset, page_size, device)
        if observed is not None:
            yield observed
        offset += chunk.length
