"""Threads that compute alone, each its share: they meet once, and not after every call as OpenMP's do.

A call of a tenth of a millisecond whose threads must meet waits for whichever of them another process keeps
from its core: beside two busy processes, two cores took 17 times as long as one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from threading import Barrier, Thread

import torch

Answers = SimpleQueue[BaseException | None]  # one for each part that is done
Tasks = SimpleQueue[tuple[Callable[[range], None], range, bool, Answers]]

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

    Each part runs on one thread, the first of them on the caller's. What `work` raises is raised here.
    """
    workers = min(threads(), len(items))
    if workers < 2:
        work(items)
        return
    parts = [items[len(items) * i // workers : len(items) * (i + 1) // workers] for i in range(workers)]
    answers: Answers = SimpleQueue()
    for helper, part in zip(_helpers(threads() - 1), parts[1:], strict=False):
        helper.put((work, part, torch.is_inference_mode_enabled(), answers))
    error: BaseException | None = None
    try:
        with _alone():
            work(parts[0])
    finally:
        for _ in parts[1:]:
            error = answers.get() or error
    if error is not None:
        raise error


@contextmanager
def _alone() -> Iterator[None]:
    if _all is not None:
        yield
        return
    compute_alone(True)
    try:
        yield
    finally:
        compute_alone(False)


@cache
def _helpers(count: int) -> list[Tasks]:
    """Where each of so many threads takes its work from; an executor wakes them in five times the time."""
    before, started = torch.get_num_threads(), Barrier(count + 1)
    tasks: list[Tasks] = [SimpleQueue() for _ in range(count)]
    for queue in tasks:
        Thread(target=_help, args=(queue, started), name="headway kernel", daemon=True).start()
    started.wait()
    torch.set_num_threads(before)  # what one thread sets is the default of all that start later
    return tasks


def _help(tasks: Tasks, started: Barrier) -> None:
    torch.get_num_threads()  # a thread takes the default when it first asks, or computes
    torch.set_num_threads(1)
    started.wait()
    while True:
        work, items, inference, answers = tasks.get()
        error: BaseException | None = None
        try:
            with torch.inference_mode(inference), torch.no_grad():
                work(items)
        except BaseException as raised:  # the caller's to handle
            error = raised
        answers.put(error)
