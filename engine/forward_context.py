"""What the attention function and the rotary embeddings need to know of the forward pass under way.

A plain module-level variable, so that families whose layers do not forward keyword arguments work too, and so
that a compiler can read it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch


class LayerCall(NamedTuple):
    """What an attention layer hands over.

    Attributes:
        query, key, value: [1, Hq, T, Dk], [1, Hkv, T, Dk], [1, Hkv, T, Dv], any strides.
        mask, options: what the model says of them; once a layer is probed, its spec holds that.
    """

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    options: Mapping[str, Any]

    @property
    def layer_idx(self) -> int:
        """The layer's number."""
        return int(self.module.layer_idx)  # type: ignore[arg-type]


def rows(states: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] → [T, H, D], a view."""
    return states.squeeze(0).transpose(0, 1)


class ForwardContext(Protocol):
    """One forward pass.

    Attributes:
        rope_groups: (length, token rows) whose length-dependent RoPE is fixed at that length; empty: the
            model chooses for itself.
    """

    @property
    def rope_groups(self) -> Sequence[tuple[int, torch.Tensor]]: ...

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Attend for one layer; returns [1, T, Hq, Dv]."""
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
