"""top_k in Triton: the threshold of every row, bit by bit, then one ordered compaction.

Floats become unsigned keys of the same order, 0 for what is never chosen. A short row stays in the registers
of one program that settles the threshold in 32 counts: one launch, one pass over memory. A long row is
divided among programs and takes five launches: four settle eight bits each, from histograms that the
programs leave side by side and the next launch adds up; the fifth writes. No atomics, nothing to clear, no
host in between: at 8 x 128k, five passes over 4 MiB that stay in the L2 cache.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from headway.kernels.top_k.gpu_kernels import BINS, digit_kernel, short_kernel, write_kernel

SHORT_ROW = 16384  # 32 keys for each thread of 16 warps
BLOCK = 4096
TARGET_PROGRAMS = 256  # about two for each multiprocessor of an H200
MAX_SPLITS = 64


def top_k(scores: Tensor, k: int, limits: Tensor | None) -> Tensor:
    out = torch.empty((*scores.shape[:-1], k), dtype=torch.int32, device=scores.device)
    rows = scores.reshape(-1, scores.shape[-1])
    row_limits = None if limits is None else limits.reshape(-1)
    run = _short_rows if rows.shape[1] <= SHORT_ROW else _long_rows
    run(rows, row_limits, out.view(-1, k))
    return out


def _short_rows(scores: Tensor, limits: Tensor | None, out: Tensor) -> None:
    num_rows, length = scores.shape
    short_kernel[(num_rows,)](
        scores, limits, out, *_shape(scores, limits, out.shape[1]), **short_constants(length),
        HAS_LIMITS=limits is not None,
    )  # fmt: skip


def _long_rows(scores: Tensor, limits: Tensor | None, out: Tensor) -> None:
    num_rows, length = scores.shape
    splits = num_splits(num_rows, length)

    def workspace(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=scores.device)

    histograms = workspace(2, num_rows, splits, BINS.value)  # the last launch's is read, the other written
    states = workspace(2, num_rows, 2)
    above = workspace(2, num_rows, splits)
    shape = _shape(scores, limits, out.shape[1])
    split_length = triton.cdiv(length, splits * BLOCK) * BLOCK
    for digit in range(4):
        now, last = digit % 2, 1 - digit % 2
        digit_kernel[num_rows, splits](
            scores, limits,
            histograms[last], states[last], above[last],
            histograms[now], states[now], above[now],
            *shape, split_length, 24 - 8 * digit,
            FIRST=digit == 0, HAS_LIMITS=limits is not None, **long_constants(splits),
        )  # fmt: skip
    write_kernel[num_rows, splits](
        scores, histograms[1], states[1], above[1], out, *shape[:3], split_length, **long_constants(splits)
    )


def num_splits(num_rows: int, length: int) -> int:
    """A power of two, from shapes alone: the grid of a captured graph must not depend on scores."""
    wanted = min(MAX_SPLITS, triton.cdiv(TARGET_PROGRAMS, num_rows), triton.cdiv(length, BLOCK))
    return int(triton.next_power_of_2(wanted))


def short_constants(length: int) -> dict[str, Any]:
    block = triton.next_power_of_2(length)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 256))}


def long_constants(splits: int) -> dict[str, Any]:
    return {"SPLITS": splits, "BLOCK": BLOCK, "num_warps": 8}


def _shape(scores: Tensor, limits: Tensor | None, k: int) -> tuple[int, int, int, int]:
    return scores.shape[1], k, scores.stride(0), 0 if limits is None else limits.stride(0)
