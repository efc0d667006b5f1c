"""Penalties: repetition, presence and frequency penalties on counts that grow by one token a step."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.engine.messages import SamplingParams
from headway.engine.request import Sequence


def uses_penalties(params: SamplingParams) -> bool:
    """Whether any of the three penalties is on."""
    return (
        params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
    )


@dataclass(slots=True)
class _Counted:
    slot: int
    tokens: int


class Penalties:
    """Counts of the requests that use penalties, on the logits' device: one slot of [V] each.

    vLLM's meaning: the repetition penalty looks at prompt and output, the other two at the output alone.
    """

    def __init__(self, vocab_size: int) -> None:
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool)
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32)
        self._counted: dict[Sequence, _Counted] = {}
        self._free: list[int] = []

    def apply(self, logits: Tensor, sequences: Rows[Sequence]) -> None:
        """Penalise float32 `logits` [R, V] in place, a row for each sequence."""
        params = [sequence.submit.sampling for sequence in sequences]
        slots = self._update(sequences, logits.device)
        counts = self._counts[slots]
        if any(p.repetition_penalty != 1.0 for p in params):
            penalty = logits.new_tensor([p.repetition_penalty for p in params])[:, None]
            seen = self._in_prompt[slots] | (counts > 0)
            penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits.copy_(torch.where(seen, penalised, logits))
        if any(p.frequency_penalty != 0.0 for p in params):
            logits -= counts * logits.new_tensor([p.frequency_penalty for p in params])[:, None]
        if any(p.presence_penalty != 0.0 for p in params):
            logits -= (counts > 0) * logits.new_tensor([p.presence_penalty for p in params])[:, None]

    def release(self, sequence: Sequence) -> None:
        """Free the sequence's slot, if it has one."""
        counted = self._counted.pop(sequence, None)
        if counted is not None:
            self._free.append(counted.slot)

    def _update(self, sequences: Rows[Sequence], device: torch.device) -> Tensor:
        """Count the tokens that are new since the last call; the sequences' slots [R]."""
        slots: list[int] = []
        grown: list[int] = []
        tokens: list[int] = []
        for sequence in sequences:
            counted = self._counted.get(sequence) or self._admit(sequence, device)
            new = sequence.tokens[counted.tokens :]
            slots.append(counted.slot)
            grown += [counted.slot] * len(new)
            tokens += new
        if tokens:
            index = torch.tensor([grown, tokens], device=device)
            ones = torch.ones(len(tokens), dtype=torch.int32, device=device)
            self._counts.index_put_((index[0], index[1]), ones, accumulate=True)
        for sequence in sequences:
            self._counted[sequence].tokens = len(sequence.tokens)
        return torch.tensor(slots, device=device)

    def _admit(self, sequence: Sequence, device: torch.device) -> _Counted:
        if not self._free:
            self._grow(device)
        slot = self._free.pop()
        self._counts[slot] = 0
        self._in_prompt[slot] = False
        self._in_prompt[slot, torch.tensor(sequence.submit.prompt, device=device)] = True
        counted = self._counted[sequence] = _Counted(slot, sequence.num_prompt)
        return counted

    def _grow(self, device: torch.device) -> None:
        old = len(self._counts)
        self._in_prompt = _doubled(self._in_prompt, device)
        self._counts = _doubled(self._counts, device)
        self._free = list(range(old, len(self._counts)))


def _doubled(table: Tensor, device: torch.device) -> Tensor:
    return torch.cat([table.to(device), table.new_zeros(max(1, len(table)), table.shape[1], device=device)])
