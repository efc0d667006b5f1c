"""What compiled attention kernels share on the host: queries in groups, splits of the work merged."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import flat
from headway.kernels.cpu_tile import LOG2_E, Floats
from headway.kernels.cpu_workers import share_out, threads

SHARED_NUMBERS = 2 * 1024 * 1024  # of keys and values: below, threads cost more than they save


def grouped(query: Tensor, lanes: int) -> NDArray[Any]:
    """query `[B, Hq, D]` -> `[B, lanes, Hq / lanes, D]`, dense, to be read through `widen`."""
    batch, _, dim = query.shape
    return flat(query.contiguous()).reshape(batch, lanes, -1, dim)


def query_factor(scale: float, softcap: float | None) -> np.float32:
    """What queries are multiplied by in the kernels, whose softmax is in powers of two."""
    return np.float32(scale * LOG2_E if softcap is None else scale / softcap)


def sink_rows(sinks: Tensor | None, lanes: int, group: int) -> Floats:
    """`[lanes, G]`, or `[0, G]` for none."""
    if sinks is None:
        return np.empty((0, group), np.float32)
    rows: Floats = sinks.float().numpy().reshape(lanes, group)
    return rows


def in_splits(
    attend: Callable[[int, int, Floats, Floats], None], numbers: int, shape: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Results `shape` and `shape[:-1]` of `attend(split, splits, out, lse)`, which reads so many numbers."""
    splits = threads() if numbers >= SHARED_NUMBERS else 1
    out, lse = np.empty((splits, *shape), np.float32), np.empty((splits, *shape[:-1]), np.float32)
    if splits == 1:
        attend(0, 1, out, lse)
        return out[0], lse[0]

    def some(parts: range) -> None:
        for split in parts:
            attend(split, splits, out, lse)

    share_out(some, range(splits))
    return _merged(out, lse)


def _merged(outs: Floats, lses: Floats) -> tuple[Floats, Floats]:
    """Parts of one softmax; where none has a token, out is 0 and lse -inf."""
    highest = np.maximum(lses.max(0), np.finfo(np.float32).min)
    weights: NDArray[np.float32] = np.exp(lses - highest)
    total = weights.sum(0)
    out = (outs * weights[..., None]).sum(0) / np.maximum(total, np.finfo(np.float32).tiny)[..., None]
    with np.errstate(divide="ignore"):
        return out, highest + np.log(total)
