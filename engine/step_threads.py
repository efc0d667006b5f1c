"""How many threads PyTorch computes a step with on a CPU.

A product of microseconds ends before a second thread is awake, unless that one never sleeps, and then it
takes its core from whoever else needs it: the server, or our own threads, which take products of few rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch

from headway.engine.batch import Batch
from headway.kernels.cpu_workers import compute_alone
from headway.kernels.few_row_linear import worthwhile_rows

LEAST_SHARED = 1_200_000
"""Multiplications of a product, on average, from which threads share it: 50 microseconds of one core."""
LONG_CONTEXT = 4096
"""Tokens from which a chunk's attention is shared; that of a decode sees to itself."""


class StepThreads:
    """One thread for steps of small products and of a few rows, all of PyTorch's threads for others."""

    def __init__(self, model: torch.nn.Module) -> None:
        weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self._weights = fmean(map(torch.Tensor.numel, weights)) if weights else LEAST_SHARED
        self._few = worthwhile_rows(max(weights, key=torch.Tensor.numel)) if weights else range(0)

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
        small = batch.num_tokens * self._weights < LEAST_SHARED or batch.num_tokens in self._few
        compute_alone(small and not long)
