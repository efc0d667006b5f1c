"""Work that threads share: all of it once, alone on their threads, errors and inference mode carried over."""

import threading

import pytest
import torch

from headway.kernels.cpu_workers import compute_alone, share_out
from headway.kernels.cpu_workers import threads as sharing


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_everything_is_done_once(threads, count):
    done = torch.zeros(10, dtype=torch.int64)
    sizes = []

    def work(items):
        sizes.append(torch.get_num_threads())
        done[items.start : items.stop] += 1

    share_out(work, range(3, 3 + count))
    assert done.tolist() == [int(3 <= i < 3 + count) for i in range(10)]
    assert len(sizes) == min(threads, max(count, 1))
    assert len(sizes) == 1 or set(sizes) == {1}


def test_the_number_of_threads_stays(threads):
    share_out(len, range(8))
    seen = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [threads, threads]


@pytest.mark.usefixtures("threads")
def test_errors_come_back():
    def fail(items):
        raise ValueError(f"from {items.start}")

    with pytest.raises(ValueError, match="from 0"):
        share_out(fail, range(8))


@pytest.mark.usefixtures("threads")
def test_results_of_inference_mode_may_be_written():
    with torch.inference_mode():
        out = torch.zeros(8)
        share_out(lambda items: out[items.start : items.stop].add_(1), range(8))
    assert out.tolist() == [1.0] * 8


def test_work_is_shared_while_pytorch_computes_alone(threads):
    compute_alone(True)
    try:
        assert (torch.get_num_threads(), sharing()) == (1, threads)
        parts = []
        share_out(parts.append, range(8))
        assert len(parts) == threads
        assert torch.get_num_threads() == 1
    finally:
        compute_alone(False)
    assert (torch.get_num_threads(), sharing()) == (threads, threads)
