"""Which of 32 scores are large, as the bits of a number: compilers do not find these vector instructions."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 32
_BITS = ir.IntType(LANES)
_NUMBERS, _PLACES = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_BITS, LANES)


def _larger(_typing: Any, scores: Any, _bound: Any) -> Any:
    """A bit for each of the first 32 `scores`, the first one's the lowest: set where it exceeds `bound`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        numbers = builder.load(builder.bitcast(memory, _NUMBERS.as_pointer()), align=4)
        bound = builder.insert_element(ir.Constant(_NUMBERS, ir.Undefined), arguments[1], _BITS(0))
        bounds = builder.shuffle_vector(bound, bound, ir.Constant(_PLACES, None))
        return builder.bitcast(builder.fcmp_ordered(">", numbers, bounds), _BITS)

    return types.uint32(scores, types.float32), code


def _lowest(_typing: Any, _bits: Any) -> Any:
    """The place of the lowest bit that is set."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint32(types.uint32), code


larger: Any = intrinsic(_larger)
lowest: Any = intrinsic(_lowest)
