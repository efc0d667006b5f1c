"""top_k: the positions of the largest scores of every row, exactly."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import dispatch

__all__ = ["top_k"]


def top_k(scores: Tensor, k: int, limits: Tensor | None = None) -> Tensor:
    """Positions of the k largest scores of each row, ascending, padded with -1 at the end.

    scores fp32 `[..., N]`, any strides but 1 in the last dimension; k >= 1, larger than N too. limits
    int32 or int64 `[...]`: a row gets at most that many, none when it is not positive. Returns int32
    `[..., k]`.

    -inf and NaN are never chosen, +inf always before anything finite. Among equal scores (-0 equals 0) the
    lowest positions win: a row's result depends on nothing but the row. Nothing is read back from a GPU.

    Raises ValueError when a shape, dtype, stride or device does not fit.
    """
    if scores.ndim == 0 or scores.dtype != torch.float32:
        raise ValueError(f"scores must be float32 [..., N], not {scores.dtype} {tuple(scores.shape)}")
    if scores.shape[-1] > 1 and scores.stride(-1) != 1:
        raise ValueError(f"scores must have stride 1 in the last dimension, not {scores.stride(-1)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if limits is not None:
        _check_limits(limits, scores)
    if scores.numel() == 0:
        return scores.new_full((*scores.shape[:-1], k), -1, dtype=torch.int32)
    return _implementation(dispatch.version(scores))(scores, k, limits)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").top_k  # type: ignore[no-any-return]


def _check_limits(limits: Tensor, scores: Tensor) -> None:
    if limits.dtype not in (torch.int32, torch.int64) or limits.shape != scores.shape[:-1]:
        wanted = f"int32 or int64 {tuple(scores.shape[:-1])}"
        raise ValueError(f"limits must be {wanted}, not {limits.dtype} {tuple(limits.shape)}")
    if limits.device != scores.device:
        raise ValueError(f"limits are on {limits.device}, scores on {scores.device}")
