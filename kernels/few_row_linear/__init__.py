"""few_row_linear: a linear layer for a few rows, such as one token each of some sequences."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor

from headway.kernels import dispatch

__all__ = ["few_row_linear", "worthwhile_rows"]


def few_row_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows `[..., K]` times weight `[N, K]`, transposed, plus bias `[N]`: `[..., N]`, as PyTorch's `linear`.

    All of one floating dtype, rows of any strides; sums are in fp32. Any number of rows may be given;
    `worthwhile_rows` says for which there is a point.

    Raises ValueError when an argument does not fit the others.
    """
    if weight.ndim != 2 or rows.ndim < 1 or rows.shape[-1] != weight.shape[1]:
        got = f"{tuple(rows.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"rows and weight must be [..., K] and [N, K], not {got}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], not {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (rows.dtype, rows.device):
            got, wanted = f"{tensor.dtype} on {tensor.device}", f"{rows.dtype} on {rows.device}"
            raise ValueError(f"{name} must be {wanted} as rows are, not {got}")
    return _implementation(dispatch.version(rows))(rows, weight, bias)


def worthwhile_rows(weight: Tensor) -> range:
    """For how many rows times `weight` it is faster than PyTorch's `linear`; empty: for none."""
    if dispatch.version(weight) != "cpu":
        return range(0)
    return import_module(f"{__name__}.cpu").worthwhile_rows(weight)  # type: ignore[no-any-return]


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """A GPU's libraries know few rows: the reference there is PyTorch's."""
    module = "cpu" if version == "cpu" else "reference"
    return import_module(f"{__name__}.{module}").few_row_linear  # type: ignore[no-any-return]
