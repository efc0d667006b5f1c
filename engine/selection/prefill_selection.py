"""PrefillSelection: which keys the queries of one layer read in one chunk of a prompt."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillSelection:
    """For the tiles of one chunk; fixed shape, on the model's device. Each H is 1, Hkv or Hq.

    Sinks, window, diagonal and dense rows need not be listed: `forced` adds them.

    Attributes:
        spans: int32 [H, tiles, K], first tokens of runs of `span` keys, anywhere; negative: none.
        columns: int32 [H, lists, M], single keys; list i serves ceil(tiles / lists) tiles. No key stands in
            the spans and columns of a tile twice.
        local_from: int32 [H, tiles], the first key of what is read up to the diagonal, if that is earlier
            than the window; 0: everything.
    """

    spans: Tensor | None = None
    span: int = 1
    columns: Tensor | None = None
    local_from: Tensor | None = None
