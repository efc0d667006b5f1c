"""What the attention function and the rotary embeddings need to know of the forward pass under way.

A plain module-level variable, so that families whose layers do not forward keyword arguments work too, and so
that a compiler can read it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class ForwardContext(Protocol):
    """One forward pass.

    Attributes:
        rope_groups: (length, token rows) whose length-dependent RoPE is fixed at that length; empty: the
            model chooses for itself.
    """

    @property
    def rope_groups(self) -> Sequence[tuple[int, torch.Tensor]]: ...

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """Attend for one layer.

        Args:
            query, key, value: [1, Hq, T, Dk], [1, Hkv, T, Dk], [1, Hkv, T, Dv], any strides.

        Returns:
            [1, T, Hq, Dv].
        """
        ...


_current: ForwardContext | None = None


def current() -> ForwardContext | None:
    """The forward pass under way, or None outside of one."""
    return _current


@contextmanager
def entered(context: ForwardContext) -> Iterator[None]:
    """Make `context` the current one.

    Raises:
        RuntimeError: another forward pass is under way.
    """
    global _current
    if _current is not None:
        raise RuntimeError("a forward pass is under way; forward contexts do not nest")
    _current = context
    try:
        yield
    finally:
        _current = None
