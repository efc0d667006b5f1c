"""float32 numbers rounded to those of a `flat` array, in compiled kernels."""

from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable


def narrow(number: Any, like: Any, end: int) -> Any:
    """`number` as a number of the array that holds `like`: the nearest, of two as near the even one.

    Of bfloat16, where `end` is 1 or -1, the nearest on the way to infinity or to minus infinity.
    """
    raise NotImplementedError("compiled kernels only")


@overload(narrow, inline="always")
def _narrow(number, like, end):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if like == numba.int16:  # bfloat16
        return lambda number, like, end: _toward(number, end) if end else _upper_bits(number, 16)  # noqa: ARG005
    if like == numba.uint16:  # float16: the reverse of `widen`
        return lambda number, like, end: (  # noqa: ARG005
            _upper_bits(abs(number) * np.float32(2.0**-112), 13) | (0x8000 if number < 0 else 0)
        )
    return lambda number, like, end: number  # noqa: ARG005


@register_jitable
def _upper_bits(number: Any, dropped: int) -> Any:
    bits = np.int64(np.float32(number).view(np.int32))
    return bits + (1 << (dropped - 1)) - 1 + (bits >> dropped & 1) >> dropped


@register_jitable
def _toward(number: Any, end: int) -> Any:
    """The upper bits, one more where what they leave out lies between the number and the end."""
    bits = np.int64(np.float32(number).view(np.int32))
    away = (bits & 0xFFFF != 0) & ((bits < 0) == (end < 0)) & (number == number)
    return (bits >> 16) + away
