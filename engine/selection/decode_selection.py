"""DecodeSelection: which tokens the queries of one layer read in one step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeSelection:
    """For B sequences with one query each; fixed shape, on the model's device.

    Attributes:
        indices: int32 [B, Hs, M], Hs = 1, Hkv or Hq: units of the sequence in ascending order, then -1.
        unit: tokens a unit; 1: token lists, page_size: page lists.
        counts: int64 [B], tokens read per KV head; None: M · unit, or the whole context if that is less.
        dense: bool [B] or [B, Hkv], sequences or KV heads of theirs that read everything and whose list is
            not used; None: none.
    """

    indices: Tensor
    unit: int
    counts: Tensor | None = None
    dense: Tensor | None = None
