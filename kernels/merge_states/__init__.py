"""merge_states: combine attention over disjoint sets of keys, by log-sum-exp."""

import torch
from torch import Tensor

from headway.kernels import dispatch

__all__ = ["merge_states"]


def merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Merge P partial attention results into one.

    outs `[P, T, H, D]`, any float dtype and strides; lses `[P, T, H]` fp32, natural log. Returns out `[T, H,
    D]` in the dtype of `outs` and lse `[T, H]` fp32. A part without keys has lse -inf and its out is
    ignored, NaN included; a row without keys in any part is zero with lse -inf.

    Raises ValueError when the shapes, the dtype of `lses` or the devices do not fit together.
    """
    if outs.ndim != 4 or outs.shape[0] == 0:
        raise ValueError(f"outs must be [P, T, H, D] with P >= 1, not {tuple(outs.shape)}")
    if lses.shape != outs.shape[:3]:
        raise ValueError(f"lses must be {tuple(outs.shape[:3])}, not {tuple(lses.shape)}")
    if lses.dtype != torch.float32:
        raise ValueError(f"lses must be float32, not {lses.dtype}")
    if lses.device != outs.device:
        raise ValueError(f"lses are on {lses.device}, outs on {outs.device}")
    match dispatch.version(outs):
        case "gpu":
            from headway.kernels.merge_states import gpu

            return gpu.merge_states(outs, lses)
        case "cpu":
            from headway.kernels.merge_states import cpu

            return cpu.merge_states(outs, lses)
        case _:
            from headway.kernels.merge_states import reference

            return reference.merge_states(outs, lses)
