"""Plans: where the tokens of some chunks lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headway.engine.batch import Chunk
from headway.kernels.paged_attention import AttentionPlan, plan


@dataclass(frozen=True, slots=True)
class Plans:
    """The chunks for `paged_attention`.

    Attributes:
        streaming: the same in the pages of heads that stream; None: they have none of their own.
    """

    own: AttentionPlan
    streaming: AttentionPlan | None = None


def plans_of(chunks: Sequence[Chunk], page_size: int, device: torch.device) -> Plans:
    """Of these chunks; those of one engine either all have pages for streaming heads or none has."""
    lengths, ends = [chunk.length for chunk in chunks], [chunk.end for chunk in chunks]
    own = plan(lengths, ends, [chunk.sequence.pages for chunk in chunks], page_size, device)
    streaming = [chunk.sequence.streaming_pages for chunk in chunks]
    if not streaming[0]:
        return Plans(own)
    return Plans(own, plan(lengths, ends, streaming, page_size, device))
