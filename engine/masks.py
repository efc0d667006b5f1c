"""What a layer's own attention mask lets a query see.

The mask and not the `sliding_window` argument is asked: some families do not pass it, and it cannot tell a
window from a chunk.
"""

from collections.abc import Callable
from typing import Any

import torch

from headway.engine.errors import ModelRefused

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Batch, head, query position, key position → whether the query sees the key."""


class MaskProbe:
    """Stands in for transformers' mask builder and remembers, by its address, what each mask would hold."""

    def __init__(self) -> None:
        self._masks: dict[int, tuple[torch.Tensor, MaskFunction]] = {}

    def build(
        self, *, mask_function: MaskFunction, q_length: int, kv_length: int, **_options: Any
    ) -> torch.Tensor:
        """Make a mask, as `AttentionMaskInterface` asks for it."""
        mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)
        self._masks[mask.data_ptr()] = (mask, mask_function)
        return mask

    def window(self, layer_idx: int, mask: torch.Tensor | None, longest: int) -> int | None:
        """Keys that a query of this layer sees, itself included; None: all of `longest` tokens.

        Raises:
            ModelRefused: the layer is not causal, or hides keys in another way than by a window.
        """
        _, sees = self._masks.get(0 if mask is None else mask.data_ptr(), (None, None))
        if sees is None:
            raise ModelRefused(f"layer {layer_idx} makes its own attention mask; what it hides is unknown")
        # From its last token, a chunk looks like a window: ask its neighbours, too.
        queries = sorted({longest - 1, max(longest - 2, 0), longest // 2, 3 * longest // 4})
        widths = [_width(sees, query, longest) for query in queries]
        window = max(widths)
        if any(width != min(window, query + 1) for width, query in zip(widths, queries, strict=True)):
            raise ModelRefused(
                f"layer {layer_idx} attends neither causally nor within a sliding window (chunked and "
                "bidirectional attention are not supported)"
            )
        return None if window == longest else window


def _width(sees: MaskFunction, query: int, longest: int) -> int:
    """Length of the unbroken run of keys that ends at `query`; 0 if the query sees anything else."""
    zero = torch.tensor(0)
    seen = sees(zero, zero, torch.tensor(query), torch.arange(longest)).expand(longest)
    count = int(seen.sum())
    return count if count <= query + 1 and bool(seen[query + 1 - count : query + 1].all()) else 0
