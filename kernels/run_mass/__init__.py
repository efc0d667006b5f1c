"""run_mass: what softmax mass each run of neighbouring keys has, as logarithms."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import dispatch

__all__ = ["run_mass"]


def run_mass(scores: Tensor, run: int, ends: Tensor) -> Tensor:
    """Sum up exp(score) over each run of `run` keys, those from a row's end on left out.

    scores fp32 `[H, T, N]`, contiguous; ends int64 `[T]`, any numbers: row t counts its keys before ends[t].

    Returns fp32 `[H, T, ceil(N / run)]`, the natural logarithms of the sums; -inf where no key counts. A sum
    of less than 1e-30 of the exponential of its row's highest score may be taken for up to as much.

    Raises ValueError when an argument does not fit the others; nothing here makes the host wait for a GPU.
    """
    if scores.dtype != torch.float32 or scores.ndim != 3 or not scores.is_contiguous():
        got = f"{scores.dtype} {tuple(scores.shape)} with strides {scores.stride()}"
        raise ValueError(f"scores must be float32 [H, T, N], contiguous, not {got}")
    if ends.dtype != torch.int64 or ends.shape != scores.shape[1:2] or ends.device != scores.device:
        wanted, got = f"int64 [{scores.shape[1]}] on {scores.device}", f"{ends.dtype} {tuple(ends.shape)}"
        raise ValueError(f"ends must be {wanted}, not {got} on {ends.device}")
    if run < 1:
        raise ValueError(f"run must be at least 1, not {run}")
    return _implementation(dispatch.version(scores))(scores, run, ends)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """A GPU has no kernel of its own for it: the reference there is a few calls of PyTorch's."""
    module = "cpu" if version == "cpu" else "reference"
    return import_module(f"{__name__}.{module}").run_mass  # type: ignore[no-any-return]
