"""SelectionStep: what of one batch is not dense, and the attention of a layer over such a batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headway.engine.batch import Batch, Chunk
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection.group import attend
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.layer_view import GroupStep, LayerView, group_step
from headway.engine.selection.observed import Observed, is_observed, observed_in
from headway.engine.selection.plans import Plans, plans_of
from headway.engine.selection.prompt_chunk import PromptChunk, is_selected
from headway.engine.selection.state import SelectionState, Stacks, restorer


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
        dense: plans of the tokens in neither; None: there are none.
        dense_rows: int64, their rows in the batch; None: the whole batch.
        observed: what of the dense part is shown to decode methods.
    """

    groups: tuple[Group, ...]
    prompts: tuple[PromptChunk, ...]
    dense: Plans | None
    dense_rows: Tensor | None
    observed: tuple[Observed, ...]
    _restorers: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._restorers.extend(group.step.stack.restorer() for group in self.groups)
        self._restorers.extend(restorer(one.state.rows) for one in self._all_observed())

    def attend(self, query: Tensor, cache: LayerCache) -> Tensor:
        """Attention of one layer, [T, Hq, Dk] → [T, Hq, Dv]."""
        out = query.new_empty(*query.shape[:2], cache.value_cache.shape[3])
        if self.dense is not None:
            part = query if self.dense_rows is None else query[self.dense_rows]
            result, lse = cache.attend(part, self.dense)
            for one in self.observed:
                one.show(part, lse, cache)
            if self.dense_rows is None:
                return result
            out[self.dense_rows] = result
        for prompt in self.prompts:
            out[prompt.rows] = prompt.attend(query[prompt.rows], cache)
        for group in self.groups:
            layer = LayerView(cache, group.step)
            if group.rows is None:
                return attend(query, layer, group.method)
            out[group.rows] = attend(query[group.rows], layer, group.method)
        return out

    def undo(self) -> None:
        """The step has failed in some layer: nothing of it stays, neither lists nor counts."""
        for restore in self._restorers:
            restore()

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
    batch: Batch, plans: Plans, stacks: Stacks, page_size: int, device: torch.device
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
    whole = plans.own
    starts = whole.host_starts

    def rows_of(indices: Iterable[int]) -> Tensor | None:
        chunks = batch.chunks
        rows = [row for i in indices for row in range(starts[i], starts[i] + chunks[i].length)]
        return None if len(rows) == whole.num_tokens else torch.tensor(rows, device=device)

    def plans_for(indices: Sequence[int]) -> Plans:
        if len(indices) == len(batch.chunks):
            return plans
        return plans_of([batch.chunks[i] for i in indices], page_size, device)

    groups = []
    for method, indices in members.items():
        states = tuple(state for i in indices if (state := batch.chunks[i].sequence.selection) is not None)
        own = plans_for(indices)
        step = group_step(own, stacks.of(method, states))
        groups.append(Group(method, step, rows_of(indices)))
    chosen = []
    for index in prompts:
        chunk = batch.chunks[index]
        sequence = chunk.sequence
        if sequence.prefill is not None:
            observed = observed_in(chunk, 0, page_size, device)
            chosen.append(
                PromptChunk(
                    sequence.prefill, plans_for([index]), whole.rows(index), sequence.num_prompt, observed,
                    sequence.prompt_reads,
                )
            )  # fmt: skip
    return SelectionStep(
        tuple(groups),
        tuple(chosen),
        plans_for(dense) if dense else None,
        rows_of(dense),
        tuple(_observed(batch, dense, page_size, device)),
    )


def _observed(batch: Batch, dense: list[int], page_size: int, device: torch.device) -> Iterable[Observed]:
    offset = 0
    for index in dense:
        chunk = batch.chunks[index]
        observed = observed_in(chunk, offset, page_size, device)
        if observed is not None:
            yield observed
        offset += chunk.length
