"""Which version of an op serves a tensor. Knows nothing of any op."""

import importlib.util
import os
from functools import cache
from typing import Literal

import torch

Version = Literal["reference", "cpu", "gpu"]

_REFERENCE = os.environ.get("HEADWAY_REFERENCE") == "1"
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton too looks at it only once


def version(tensor: torch.Tensor) -> Version:
    """Triton for a GPU tensor, the CPU path for a CPU tensor.

    Set in the environment from the start, `HEADWAY_REFERENCE=1` forces the reference everywhere, and
    `TRITON_INTERPRET=1` sends CPU tensors through the Triton kernels: that is how they are tested without a
    GPU. A device without Triton, or a CPU without Numba, gets the reference, which is right and slow.
    """
    if _REFERENCE:
        return "reference"
    if tensor.is_cuda or _INTERPRETED:
        return "gpu" if has_triton() else "reference"
    return "cpu" if tensor.device.type == "cpu" and has_numba() else "reference"


@cache
def has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
