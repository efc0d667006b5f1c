"""top_k on a CPU, in NumPy, whose partition and comparisons are vectorised.

A bound that no chosen score lies under leaves few candidates, and one comparison over the rows finds them in
ascending order. Short rows get the exact bound, their k-th largest score. Long ones get the k-th largest of
the maxima of disjoint groups, as k groups hold a score at least as high: two passes over the row in all.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHORT_ROW = 4096  # up to here partitioning a whole row is no slower than the group maxima
LARGEST_GROUP, SMALLEST_GROUP = 32, 4
LOWEST = np.finfo(np.float32).min

Floats = NDArray[np.float32]


def top_k(scores: Tensor, k: int, limits: Tensor | None) -> Tensor:
    length = scores.shape[-1]
    most = min(k, length)
    rows: Floats = scores.detach().numpy().reshape(-1, length)
    counts = [most] * len(rows)
    if limits is not None:
        counts = [max(0, min(limit, most)) for limit in limits.flatten().tolist()]
    out = np.full((*scores.shape[:-1], k), -1, np.int32)
    if max(counts) > 0:
        _choose(rows, counts, out.reshape(-1, k))
    return torch.from_numpy(out)


def _choose(rows: Floats, counts: list[int], out: NDArray[np.int32]) -> None:
    """Write up to counts[i] positions of row i, at least one count being positive."""
    num_rows, length = rows.shape
    most = max(counts)
    bounds = np.fmax(_bounds(rows, most), LOWEST)  # -inf is never chosen, and a NaN bounds nothing
    cells = (rows >= bounds[:, None]).ravel().nonzero()[0]
    splits = cells.searchsorted(np.arange(0, (num_rows + 1) * length, length)).tolist()
    if min(counts) == most and splits == list(range(0, num_rows * most + 1, most)):
        out[:, :most] = (cells % length).reshape(num_rows, most)
        return
    for i, count in enumerate(counts):
        positions = cells[splits[i] : splits[i + 1]] - i * length
        if len(positions) < count and bounds[i] > LOWEST:  # NaNs passed for large scores and raised the bound
            positions = np.flatnonzero(rows[i] >= LOWEST)
        if len(positions) > count:
            positions = positions[_among_largest(rows[i, positions], count)]
        out[i, : len(positions)] = positions


def _bounds(rows: Floats, count: int) -> Floats:
    num_rows, length = rows.shape
    group_size = min(LARGEST_GROUP, length // (2 * count))
    if length > SHORT_ROW and group_size >= SMALLEST_GROUP:
        num_groups = length // group_size
        # A group is spread over the row, so that neighbours, which tend to be alike, are in different ones
        groups = rows[:, : num_groups * group_size].reshape(num_rows, group_size, num_groups)
        rows = groups.max(axis=1)
    place = rows.shape[1] - count
    return np.partition(rows, place, axis=1)[:, place]


def _among_largest(values: Floats, count: int) -> NDArray[np.bool_]:
    if count == 0:
        return np.zeros(len(values), np.bool_)
    place = len(values) - count
    threshold = np.partition(values, place)[place]
    chosen: NDArray[np.bool_] = values >= threshold
    surplus = np.count_nonzero(chosen) - count
    if surplus:
        chosen[np.flatnonzero(values == threshold)[-surplus:]] = False
    return chosen
