"""PromptChunk: a chunk of a prompt, for whose queries a prefill method selects."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headway.engine.batch import Chunk
from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.observed import Observed
from headway.engine.selection.plans import Plans
from headway.engine.selection.prompt_reads import PromptReads


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """One such chunk of a batch.

    Attributes:
        plans: the chunk alone.
        rows: where it stands in the batch.
        num_prompt: tokens of the whole prompt.
        reads: where `done` counts.
    """

    method: PrefillMethod[Any]
    plans: Plans
    rows: slice
    num_prompt: int
    observed: Observed | None
    reads: PromptReads
    _read: list[Tensor] = field(default_factory=list)
    _heads: list[int] = field(default_factory=list)

    def attend(self, query: Tensor, cache: LayerCache) -> Tensor:
        """Attention of one layer, [T, Hq, Dk] → [T, Hq, Dv]."""
        view = ChunkView(cache, self.plans.own, self.num_prompt, self._read, self.plans.streaming)
        counted = len(self._read)
        dense = cache.spec.layer_idx < self.method.settings.dense_layers
        out, lse = (self.method.attend_densely if dense else self.method.attend)(query, view)
        if len(self._read) > counted:
            self._heads.append(query.shape[1])
        if self.observed is not None:
            self.observed.show(query, lse, cache)
        return out

    def done(self) -> None:
        """The step has run through all layers: what they have read counts."""
        if self._read:
            tokens, end = self.plans.own.num_tokens, self.plans.own.host_kv_lens[0]
            pairs = tokens * end - tokens * (tokens - 1) // 2
            read = torch.stack([one.double() for one in self._read]).sum()
            self.reads.add(tokens, read, pairs * sum(self._heads))


def is_selected(chunk: Chunk) -> bool:
    """Whether a prefill method selects for a chunk: it is prompt, and reaches beyond the dense beginning."""
    sequence = chunk.sequence
    if sequence.prefill is None or chunk.start >= sequence.num_prompt:
        return False
    dense_below: int = sequence.prefill.settings.dense_below
    return chunk.end > dense_below
