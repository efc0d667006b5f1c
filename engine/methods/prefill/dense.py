"""dense: every token reads everything before it."""

from typing import Literal

import torch
from torch import Tensor

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_settings import PrefillSettings


class Settings(PrefillSettings):
    """Nothing is selected; the other settings tell only where other heads of a layer stream."""

    method: Literal["dense"] = "dense"


class Method(PrefillMethod[Settings]):
    """Asked only beside heads that stream: a dense prompt runs in the batch's dense part."""

    def attend(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """Over everything."""
        tokens = len(query)
        pairs = (tokens * chunk.end - tokens * (tokens - 1) // 2) * query.shape[1]
        chunk.count(torch.full((), pairs, dtype=torch.int64, device=query.device))
        return self.attend_densely(query, chunk)
