"""How many threads PyTorch computes a step with on a CPU.

A product of microseconds ends before a second thread is awake, unless that one never sleeps, and then it
takes its core from whoever else needs it: the server, for one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch

from headway.engine.batch import Batch
from headway.kernels.cpu_workers import compute_alone

LEAST_SHARED = 1_200_000
"""Multiplications of a product, on average, from which threads share it: 50 microseconds of one core."""
LONG_CONTEXT = 4096
"""Tokens from which a chunk's attention is shared; that of a decode sees to itself."""


class StepThreads:
    """One thread for steps of small products, all of PyTorch's threads for others."""

    def __init__(self, model: torch.nn.Module) -> None:
        sizes = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self._weights = fmean(sizes) if sizes else LEAST_SHARED

    @contextmanager
    def restored(self) -> Iterator[None]:
        """All threads again on leaving."""
        try:
            yield
        finally:
            compute_alone(False)

    def choose(self, batch: Batch) -> None:
        """Set the number of threads for a batch, until the next one."""
        long = any(chunk.length > 1 and chunk.end >= LONG_CONTEXT for chunk in batch.chunks)
        compute_alone(not long and batch.num_tokens * self._weights < LEAST_SHARED)
