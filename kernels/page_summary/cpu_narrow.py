"""float32 numbers rounded to those of a `flat` array, in compiled kernels: of two as near to the even one."""

from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable


def narrow(number: Any, like: Any) -> Any:
    """`number` as a number of the array that holds `like`."""
    raise NotImplementedError("compiled kernels only")


@overload(narrow, inline="always")
def _narrow(number, like):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if like == numba.int16:  # bfloat16
        return lambda number, like: _upper_bits(number, 16)  # noqa: ARG005
    if like == numba.uint16:  # float16: the reverse of `widen`
        return lambda number, like: (  # noqa: ARG005
            _upper_bits(abs(number) * np.float32(2.0**-112), 13) | (0x8000 if number < 0 else 0)
        )
    return lambda number, like: number  # noqa: ARG005


@register_jitable
def _upper_bits(number: Any, dropped: int) -> Any:
    bits = np.int64(np.float32(number).view(np.int32))
    return bits + (1 << (dropped - 1)) - 1 + (bits >> dropped & 1) >> dropped
