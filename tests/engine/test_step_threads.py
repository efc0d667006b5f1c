"""StepThreads: which steps one thread computes, and that all threads are there again afterwards."""

import pytest
import torch
from torch import nn

from headway.engine.batch import Batch, Chunk
from headway.engine.step_threads import LEAST_SHARED, LONG_CONTEXT, StepThreads


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch(*spans):
    return Batch(tuple(Chunk(None, start, end - start, samples=True) for start, end in spans))


SMALL, LARGE = nn.Linear(64, 64, device="meta"), nn.Linear(2048, 2048, device="meta")
FEWEST = LEAST_SHARED // SMALL.weight.numel() + 1
FEW = nn.Linear(2048, 2048, device="cpu")


@pytest.mark.parametrize(
    ("model", "step", "expected"),
    [
        (SMALL, batch((5, 6)), 1),
        (SMALL, batch((0, FEWEST - 1)), 1),
        (SMALL, batch((0, FEWEST)), 2),
        (SMALL, batch(*[(5, 6)] * FEWEST), 2),
        (LARGE, batch((5, 6)), 2),
        (nn.Sequential(SMALL, LARGE), batch((5, 6)), 2),
        (nn.LayerNorm(8), batch((5, 6)), 2),
        (nn.Sequential(SMALL, FEW), batch((5, 6)), 2),
        (nn.Sequential(SMALL, FEW), batch(*[(5, 6)] * 8), 1),
        (nn.Sequential(SMALL, FEW), batch(*[(5, 6)] * 200), 2),
        (nn.Sequential(SMALL, FEW), batch(*[(5, 6)] * 7, (LONG_CONTEXT, LONG_CONTEXT + 2)), 2),
        (SMALL, batch((5, 6), (LONG_CONTEXT - 3, LONG_CONTEXT - 1)), 1),
        (SMALL, batch((5, 6), (LONG_CONTEXT - 2, LONG_CONTEXT)), 2),
        (SMALL, batch((LONG_CONTEXT, LONG_CONTEXT + 1)), 1),
    ],
)
def test_threads_of_a_step(model, step, expected):
    threads = StepThreads(model)
    with threads.restored():
        threads.choose(step)
        assert torch.get_num_threads() == expected
        threads.choose(batch((0, 100_000)))
        assert torch.get_num_threads() == 2
        threads.choose(step)
    assert torch.get_num_threads() == 2


def test_restored_after_an_error():
    threads = StepThreads(SMALL)

    def fail():
        with threads.restored():
            threads.choose(batch((5, 6)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 2
