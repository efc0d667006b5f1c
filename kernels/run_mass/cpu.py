"""run_mass on a CPU: scores are read once, where a chain of PyTorch's calls reads and writes them five times.

Measured on an Intel Xeon, one thread, within a chunk of needle: 128 rows of 18,432 scores in runs of 32 take
3 ms, the chain with its copies 12.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import compiled, exp2
from headway.kernels.cpu_tile import LOG2_E, Floats, highest_of
from headway.kernels.cpu_workers import share_out

SHARED_SCORES = 256 * 1024  # below, threads cost more than they save


def run_mass(scores: Tensor, run: int, ends: Tensor) -> Tensor:
    heads, rows, keys = scores.shape
    out = np.empty((heads * rows, -(-keys // run)), np.float32)
    numbers, last = scores.numpy().reshape(heads * rows, keys), ends.clamp(0, keys).numpy()

    def some(items: range) -> None:
        _run_mass((items.start, items.stop), numbers, run, last, out)

    if numbers.size < SHARED_SCORES:
        some(range(heads * rows))
    else:
        share_out(some, range(heads * rows))
    return torch.from_numpy(out.reshape(heads, rows, out.shape[1]))


@compiled
def _run_mass(part: tuple[int, int], scores: Floats, run: int, ends: NDArray[np.int64], out: Floats) -> None:
    """Rows part[0] to part[1] of scores `[R, N]`, into out `[R, M]`; row r ends at ends[r % T]."""
    for r in range(part[0], part[1]):
        end = ends[r % len(ends)]
        for m in range(out.shape[1]):
            some = scores[r, m * run : min((m + 1) * run, end)]
            highest = highest_of(some, np.float32(-np.inf))
            total = np.float32(0)
            for n in range(len(some)):
                total += exp2((some[n] - highest) * LOG2_E)
            out[r, m] = highest + np.log(total) if highest > -np.inf else -np.inf
