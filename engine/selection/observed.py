"""Observed: a prompt's queries that a decode method must see."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headway.engine.batch import Chunk
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.layer_view import GroupStep, LayerView
from headway.engine.selection.state import SelectionState, Stack
from headway.kernels.paged_attention import AttentionPlan, plan


@dataclass(frozen=True, slots=True)
class Observed:
    """Queries of one chunk. `rows`: where they stand in the part of the batch that is attended to."""

    method: DecodeMethod[Any]
    state: SelectionState
    plan: AttentionPlan
    rows: slice

    def show(self, query: Tensor, lse: Tensor, cache: LayerCache) -> None:
        """Let the method see its rows of a part's queries [T, Hq, Dk] and of their lse [T, Hq]."""
        if cache.spec.layer_idx < self.method.settings.dense_layers:
            return
        self.method.observe(query[self.rows], lse[self.rows], LayerView(cache, self._step()))

    def _step(self) -> GroupStep:
        device = self.plan.device
        nothing = torch.zeros(1, dtype=torch.float64, device=device)
        stack = Stack((self.state,), self.state.rows, nothing, nothing.clone())
        return GroupStep(self.plan, stack, torch.ones(1, dtype=torch.bool, device=device), nothing.long())


def is_observed(chunk: Chunk) -> bool:
    """Whether a chunk holds prompt tokens that its method must see."""
    sequence = chunk.sequence
    return max(chunk.start, sequence.observed_from) < min(chunk.end, sequence.num_prompt)


def observed_in(chunk: Chunk, offset: int, page_size: int, device: torch.device) -> Observed | None:
    """What a chunk, whose rows begin at `offset`, shows to its sequence's method; None: nothing."""
    sequence = chunk.sequence
    if sequence.decode is None or sequence.selection is None or not is_observed(chunk):
        return None
    first = max(chunk.start, sequence.observed_from)
    end = min(chunk.end, sequence.num_prompt)
    rows = slice(offset + first - chunk.start, offset + end - chunk.start)
    view = plan([1], [end], [sequence.pages], page_size, device)
    return Observed(sequence.decode, sequence.selection, view, rows)
