"""Loops over a paged cache compiled for this CPU by Numba: what one call of a tensor library cannot say.

A decode reads little of much in a place or two; gathering it first, a call for each step, takes several times
as long as reading it once. Kernels here see tensors as flat arrays in which the last dimension is dense, and
walk them by strides.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numba.extending import overload, register_jitable
from numpy.typing import NDArray
from torch import Tensor

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# All but "no infinities": -inf stands for what is not there. NaN is looked for where it matters, in top_k.
_FAST = {"nnan", "nsz", "arcp", "contract", "afn", "reassoc"}
_AS_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.uint16}  # the type tells `widen` what they are


def compiled(function: Kernel) -> Kernel:
    """`function` as machine code that holds no interpreter lock, made at its first call and kept on disk.

    Numba notices a change in `function`'s own file only: `make clean` after one in a file that it calls.
    """
    return _compile(function, _FAST)


def compiled_exactly(function: Kernel) -> Kernel:
    """`compiled` without any freedom in floating-point arithmetic: comparisons know NaN and infinities."""
    return _compile(function, False)


def _compile(function: Kernel, fastmath: Any) -> Kernel:
    def compile_with(cache: bool) -> Any:
        return numba.njit(function, nogil=True, cache=cache, fastmath=fastmath, error_model="numpy")

    try:
        return compile_with(cache=True)  # type: ignore[no-any-return]
    except RuntimeError:  # nowhere to write: compile anew in each process
        return compile_with(cache=False)  # type: ignore[no-any-return]


def flat(tensor: Tensor) -> NDArray[Any]:
    """The memory of `tensor` from its first number to its last, one-dimensional; bits for 16-bit floats.

    No stride may be negative. Read elements through `widen`.
    """
    bits = _AS_BITS.get(tensor.dtype)
    if bits is not None:
        tensor = tensor.view(bits)
    if tensor.is_contiguous():
        return tensor.numpy().reshape(-1)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent,), (1,)).numpy()


def widen(number: Any) -> Any:
    """A number of a `flat` array as float32."""
    raise NotImplementedError("compiled kernels only")


@overload(widen, inline="always")
def _widen(number):  # type: ignore[no-untyped-def]
    if number == numba.int16:  # bfloat16: the upper half of a float32
        return lambda number: np.int32(np.int32(number) << np.int32(16)).view(np.float32)
    if number == numba.uint16:
        return _widen_float16
    return lambda number: np.float32(number)


def _widen_float16(number):  # type: ignore[no-untyped-def]
    """Exponent and fraction in place, then the smaller bias made good; inf and NaN stay what they are."""
    magnitude = (np.int32(number) & np.int32(0x7FFF)) << np.int32(13)
    sign = (np.int32(number) & np.int32(0x8000)) << np.int32(16)
    endless = np.int32(0x7F800000) * np.int32(np.int32(number) & np.int32(0x7C00) == np.int32(0x7C00))
    return np.int32(magnitude | sign | endless).view(np.float32) * np.float32(2.0**112)


@register_jitable(inline="always")
def exp2(x: np.float32) -> np.float32:
    """2 to the power of x <= 0, to 2e-7 relative above -126; in a form that compilers turn into vectors."""
    x = max(x, np.float32(-126.0))
    whole = np.floor(x)
    rest = x - whole
    power = np.float32(1.8775767e-3)
    power = power * rest + np.float32(8.9893397e-3)
    power = power * rest + np.float32(5.5826318e-2)
    power = power * rest + np.float32(2.4015361e-1)
    power = power * rest + np.float32(6.9315308e-1)
    power = power * rest + np.float32(9.9999994e-1)
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)  # type: ignore[no-any-return]
