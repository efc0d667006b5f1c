"""few_row_linear on a CPU: weights are read once, as fast as memory gives them, and meet all rows meanwhile.

Libraries' products are made for one row or for many. Measured on an Intel Xeon, float32 weights [2816, 1024]
from memory, one thread: 4, 8, 16 and 32 rows take 0.9, 1.0, 1.5 and 2.1 ms, PyTorch's (MKL) 1.6, 2.1, 2.1
and 2.5; one row takes its 0.8.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.kernels.cpu_compile import compiled, flat
from headway.kernels.cpu_tile import Floats
from headway.kernels.cpu_workers import share_out
from headway.kernels.few_row_linear import reference
from headway.kernels.few_row_linear.cpu_tiles import HIGH, LANES, WIDE, multiply_tile

LEAST_WEIGHTS = 128 * 1024  # with fewer, calling costs more than multiplying
SHARED_PRODUCTS = 12 * 1024 * 1024  # below, threads cost more than they save
READ_ROWS = 6  # with fewer, reading the weights takes as long as these would take to multiply


def worthwhile_rows(weight: Tensor) -> range:
    # 16-bit weights are left to oneDNN, which multiplies them by tiles where the CPU has these.
    if weight.dtype != torch.float32 or weight.numel() < LEAST_WEIGHTS or not _in_tiles(weight):
        return range(0)
    return range(HIGH, 2 * LANES + 1)


def few_row_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _in_tiles(weight):
        return reference.few_row_linear(rows, weight, bias)
    width, size = weight.shape
    inputs, weights = rows.float().reshape(-1, size).contiguous().numpy(), flat(weight)
    out = np.empty((-(-len(inputs) // WIDE) * WIDE, width), np.float32)

    def some(tiles: range) -> None:
        _multiply((tiles.start, tiles.stop), weights, inputs, out)

    tiles = range(-(-width // HIGH))
    if max(len(inputs), READ_ROWS) * weights.size < SHARED_PRODUCTS:
        some(tiles)
    else:
        share_out(some, tiles)
    result = torch.from_numpy(out)[: len(inputs)]
    if bias is not None:
        result += bias
    return result.view(*rows.shape[:-1], width).to(rows.dtype)


def _in_tiles(weight: Tensor) -> bool:
    width, size = weight.shape
    return width >= HIGH and size > 0 and size % LANES == 0 and weight.is_contiguous()


@compiled
def _multiply(part: tuple[int, int], weights: Any, inputs: Floats, out: Floats) -> None:
    """Of out `[C, N]` the columns of the tiles part[0] to part[1]; inputs `[M, K]`, weights flat `[N, K]`."""
    (count, size), (room, width) = inputs.shape, out.shape
    highest, turns = width - HIGH, room // WIDE
    # The tile that comes next is asked for bit by bit: what is asked for at once is waited for.
    shift = 2 if turns >= 4 else 1 if turns >= 2 else 0
    for tile in range(part[0], part[1]):
        row, after = min(tile * HIGH, highest), min((tile + 1) * HIGH, highest)
        for turn in range(turns):
            line = min(turn, HIGH - 1) * HIGH
            a, b, c, d = line >> shift, (line + 1) >> shift, (line + 2) >> shift, (line + 3) >> shift
            coming = after + a % HIGH, after + b % HIGH, after + c % HIGH, after + d % HIGH
            multiply_tile(weights, row, inputs, turn * WIDE, count, size, coming, out, width)  # type: ignore[call-arg]
