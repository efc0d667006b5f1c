"""How many threads PyTorch computes a step with on a CPU.

A product of microseconds ends before a second thread is awake, unless that one never sleeps, and then it
takes its core from whoever else needs it: the server, for one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch

from headway.engine.batch import Batch

LEAST_SHARED = 1_200_000
"""Multiplications of a product, on average, from which threads share it: 50 microseconds of one core."""
LONG_CONTEXT = 4096
"""Tokens from which one sequence's dense attention is shared."""


class StepThreads:
    """One thread for steps of small products and short contexts, all of PyTorch's threads for others."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._all = torch.get_num_threads()
        sizes = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self._weights = fmean(sizes) if sizes else LEAST_SHARED

    @contextmanager
    def restored(self) -> Iterator[None]:
        """All threads again on leaving."""
        try:
            yield
        finally:
            torch.set_num_threads(self._all)

    def choose(self, batch: Batch) -> None:
        """Set the number of threads for a batch, until the next one."""
        long = any(chunk.sequence.decode is None and chunk.end >= LONG_CONTEXT for chunk in batch.chunks)
        alone = not long and batch.num_tokens * self._weights < LEAST_SHARED
        wanted = 1 if alone else self._all
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
