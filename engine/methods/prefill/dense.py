"""dense: every token reads everything before it."""

from typing import Literal

import torch
from torch import Tensor

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.kernels.paged_attention import paged_attention


class Settings(PrefillSettings):
    """Nothing is selected; the other settings tell only where other heads of a layer stream."""

    method: Literal["dense"] = "dense"


class Method(PrefillMethod[Settings]):
    """Asked only beside heads that stream: a dense prompt runs in the batch's dense part."""

    def attend(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """Over everything."""
        spec, tokens = chunk.spec, len(query)
        pairs = (tokens * chunk.end - tokens * (tokens - 1) // 2) * query.shape[1]
        chunk.count(torch.full((), pairs, dtype=torch.int64, device=query.device))
        return paged_attention(
            query, chunk.key_cache, chunk.value_cache, chunk.plan,
            scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks,
        )  # fmt: skip
