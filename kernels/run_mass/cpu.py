"""run_mass on a CPU: scores are read once, where a chain of PyTorch's calls reads and writes them five times.

Measured on an Intel Xeon, one thread, within a chunk of needle: 128 rows of 18,432 scores in runs of 32 take
2.7 ms, the chain with its copies 12.
"""

import numpy as np
import torch
from numba.extending import register_jitable
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import compiled, exp2
from headway.kernels.cpu_tile import LOG2_E, Floats, highest_of
from headway.kernels.cpu_workers import share_out

SMALLEST, LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max
SHARED_SCORES = 256 * 1024  # below, threads cost more than they save


def run_mass(scores: Tensor, run: int, ends: Tensor) -> Tensor:
    heads, rows, keys = scores.shape
    sums = np.empty((heads * rows, -(-keys // run)), np.float32)
    highest = np.empty((heads * rows, 1), np.float32)
    numbers, last = scores.numpy().reshape(heads * rows, keys), ends.clamp(0, keys).numpy()

    def some(items: range) -> None:
        _sum_up((items.start, items.stop), numbers, run, last, highest, sums)

    if numbers.size < SHARED_SCORES:
        some(range(heads * rows))
    else:
        share_out(some, range(heads * rows))
    # PyTorch's log goes by vectors; a compiled one takes as long as all the rest.
    return torch.from_numpy(sums).log_().add_(torch.from_numpy(highest)).view(heads, rows, sums.shape[1])


@compiled
def _sum_up(
    part: tuple[int, int], scores: Floats, run: int, ends: NDArray[np.int64], highest: Floats, sums: Floats
) -> None:
    """Rows part[0] to part[1] of scores `[R, N]`, of which r ends at ends[r % T].

    highest `[R, 1]`: a row's highest score; sums `[R, M]` of exponentials, divided by that of the highest.
    """
    powers = np.empty(scores.shape[1], np.float32)
    for r in range(part[0], part[1]):
        row, end, into = scores[r], ends[r % len(ends)], sums[r]
        highest[r, 0] = top = highest_of(row[:end], -LARGEST)
        for n in range(end):
            powers[n] = exp2((row[n] - top) * LOG2_E)
        whole = end // run
        for m in range(whole):
            into[m] = max(_sum(powers[m * run : (m + 1) * run]), SMALLEST)
        into[whole:] = 0
        if end % run:
            into[whole] = max(_sum(powers[whole * run : end]), SMALLEST)


@register_jitable
def _sum(numbers: Floats) -> np.float32:
    total = np.float32(0)
    for number in numbers:
        total += number
    return total
