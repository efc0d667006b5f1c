"""PromptReads: how much of a prompt's attention a prefill method has read."""

from dataclasses import dataclass

from torch import Tensor

from headway.engine.messages import PrefillUsage


@dataclass(slots=True, eq=False)
class PromptReads:
    """Counters of one sequence, over all layers that select; what is computed again is counted again.

    Attributes:
        tokens: prompt tokens that the method computed.
        read: pairs of a query and a key that were read, float64 on the model's device.
        causal: pairs that dense attention would have read.
    """

    tokens: int = 0
    read: Tensor | None = None
    causal: int = 0

    def add(self, tokens: int, read: Tensor, causal: int) -> None:
        """Add a chunk, `read` a float64 scalar; the host does not wait for it."""
        self.tokens += tokens
        self.read = read if self.read is None else self.read + read
        self.causal += causal

    def usage(self, method: str) -> PrefillUsage:
        """What is reported at the end; the host waits for the device."""
        if self.read is None:
            return PrefillUsage(method=method)
        return PrefillUsage(method=method, tokens=self.tokens, density=float(self.read) / self.causal)
