"""What compiled attention kernels share on the host: queries in groups, splits of the work merged."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import flat
from headway.kernels.cpu_tile import LOG2_E, Floats, Ints
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


class Shares(NamedTuple):
    """What the threads of a batch do: each some of its rows, or each a part of every row."""

    rows: list[slice]
    splits: int


def shares_of(numbers: Ints) -> Shares:
    """How to share out rows that read so many numbers each `[R]`."""
    total, everything = int(numbers.sum()), [slice(0, len(numbers))]
    workers = threads() if total >= SHARED_NUMBERS else 1
    if workers == 1 or 2 * workers * int(numbers.max()) > total:
        return Shares(everything, workers)
    cuts = np.searchsorted(np.cumsum(numbers), total * np.arange(1, workers) // workers, "right")
    ends = [0, *cuts.tolist(), len(numbers)]
    return Shares([slice(*pair) for pair in pairwise(ends)], 1)


def in_splits(
    attend: Callable[[slice, int, int, Floats, Floats], None], shares: Shares, shape: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Results `shape` and `shape[:-1]` of `attend(rows, split, splits, out, lse)`."""
    rows, splits = shares
    out, lse = np.empty((splits, *shape), np.float32), np.empty((splits, *shape[:-1]), np.float32)
    if len(rows) == splits == 1:
        attend(rows[0], 0, 1, out, lse)
        return out[0], lse[0]

    def some(parts: range) -> None:
        for part in parts:
            attend(rows[part // splits], part % splits, splits, out, lse)

    share_out(some, range(len(rows) * splits))
    return _merged(out, lse) if splits > 1 else (out[0], lse[0])


def _merged(outs: Floats, lses: Floats) -> tuple[Floats, Floats]:
    """Parts of one softmax; where none has a token, out is 0 and lse -inf."""
    highest = np.maximum(lses.max(0), np.finfo(np.float32).min)
    weights: NDArray[np.float32] = np.exp(lses - highest)
    total = weights.sum(0)
    out = (outs * weights[..., None]).sum(0) / np.maximum(total, np.finfo(np.float32).tiny)[..., None]
    with np.errstate(divide="ignore"):
        return out, highest + np.log(total)
