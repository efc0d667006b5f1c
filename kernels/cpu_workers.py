"""Threads that compute alone, each its share: they meet once, and not after every call as OpenMP's do.

A call of a tenth of a millisecond whose threads must meet waits for whichever of them another process keeps
from its core: beside two busy processes, two cores took 17 times as long as one.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch

_all: int | None = None  # of PyTorch's threads, while it computes on one of them


def threads() -> int:
    """Threads that work is shared among: as many as PyTorch has, also while it computes on one."""
    return _all or torch.get_num_threads()


def compute_alone(alone: bool) -> None:
    """Let PyTorch compute on the calling thread alone, or on all of its threads again."""
    global _all
    if alone and _all is None:
        _all = torch.get_num_threads()
        torch.set_num_threads(1)
    elif not alone and _all is not None:
        torch.set_num_threads(_all)
        _all = None


def share_out(work: Callable[[range], None], items: range) -> None:
    """Call `work` on contiguous parts of `items`, as many as there are `threads()`, side by side.

    Each part runs on one thread. What `work` raises is raised here.
    """
    workers = min(threads(), len(items))
    if workers < 2:
        work(items)
        return
    inference = torch.is_inference_mode_enabled()

    def part(number: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(items[len(items) * number // workers : len(items) * (number + 1) // workers])

    for _ in _pool(threads()).map(part, range(workers)):
        pass


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    before, started = torch.get_num_threads(), Barrier(size + 1)

    def alone() -> None:
        torch.get_num_threads()  # a thread takes the default when it first asks, or computes
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(size, "headway kernel", initializer=alone)
    for _ in range(size):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)  # what one thread sets is the default of all that start later
    return pool
