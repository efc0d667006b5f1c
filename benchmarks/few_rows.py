"""Products of a few rows against PyTorch's `linear`: `python -m benchmarks.few_rows [--json FILE]`.

Weights lie in memory, not in a cache: there are more of them than any cache holds, and each product takes the
next one. The two are timed in turn, for one thread and for all; medians, float32.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.serving import machine
from headway.kernels.few_row_linear import few_row_linear

SHAPES = [(1024, 1024), (2816, 1024), (1024, 2816)]
COUNTS = [1, 4, 8, 16, 32]
WEIGHT_BYTES = 600_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """Microseconds of one product."""

    weight: tuple[int, int]
    rows: int
    threads: int
    linear_us: float
    ours_us: float

    @property
    def ratio(self) -> float:
        """Our speed-up."""
        return self.linear_us / self.ours_us


def measure(weights: list[Tensor], count: int, threads: int) -> Row:
    """Both ways of multiplying `count` rows by each of the weights, one after the other."""
    torch.set_num_threads(threads)
    rows, following = torch.randn(count, weights[0].shape[1]), cycle(weights)
    runs: list[Callable[[Tensor, Tensor], Tensor]] = [linear, few_row_linear]
    times: list[list[float]] = [[] for _ in runs]
    expected, found = (run(rows, weights[0]) for run in runs)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)  # no speed without equality
    for _ in weights:
        for run, seconds in zip(runs, times, strict=True):
            weight, began = next(following), time.perf_counter()
            run(rows, weight)
            seconds.append(time.perf_counter() - began)
    theirs, ours = (round(median(seconds) * 1e6, 1) for seconds in times)
    width, size = weights[0].shape
    return Row((width, size), count, threads, theirs, ours)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine to FILE")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows, all_threads = [], torch.get_num_threads()
    with torch.inference_mode():
        for width, size in SHAPES:
            weights = [torch.randn(width, size) for _ in range(WEIGHT_BYTES // (4 * width * size))]
            rows += [
                measure(weights, count, threads) for threads in sorted({1, all_threads}) for count in COUNTS
            ]
    table = Table("weight", "rows", "threads", "linear, us", "ours, us", "speed-up")
    for row in rows:
        numbers = (row.rows, row.threads, row.linear_us, row.ours_us, f"{row.ratio:.2f}x")
        table.add_row(str(list(row.weight)), *map(str, numbers))
    Console().print(table)
    if args.json:
        lines = [{**asdict(row), "ratio": round(row.ratio, 3)} for row in rows]
        args.json.write_text(json.dumps({"machine": machine(), "rows": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
