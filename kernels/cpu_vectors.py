"""What loops cannot tell a compiler, for compiled kernels: dot products in vectors, and what to fetch ahead.

A product of one query with one key ends in a sum across a vector, which takes as long as the product. Eight
at a time are summed side by side, in half the instructions that eight sums take.
"""
# ruff: noqa: ARG001 - Numba looks at the names of an intrinsic's arguments

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8  # numbers of a vector; rows that are multiplied at a time

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_ANY_ORDER = ("contract", "reassoc", "nsz")
_NEIGHBOURS = (
    ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
    ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)
"""Of two vectors: the lanes that are added to each other, after which both lie in one; round by round."""


@intrinsic
def eight_dots(
    _: Any, query: Any, numbers: Any, at: Any, offset: Any, first: Any, size: Any, out: Any
) -> Any:
    """out[i] = numbers[at[i] + offset :][:size] times query[:size], for eight i from `first` on.

    All flat and dense, float32 and int64; `size`: a multiple of `LANES`.
    """
    whole = types.int64
    return types.void(query, numbers, at, whole, whole, whole, out), _eight_dots


def _eight_dots(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    query, numbers, at, out = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1, 2, 6)
    )
    offset, place, size = args[3:6]
    places = [builder.gep(at, [builder.add(place, ir.Constant(place.type, row))]) for row in range(LANES)]
    rows = [builder.gep(numbers, [builder.add(builder.load(one), offset)]) for one in places]
    sums = [cgutils.alloca_once(builder, _VECTOR) for _ in rows]  # type: ignore[no-untyped-call]
    for each in sums:
        builder.store(ir.Constant(_VECTOR, [0.0] * LANES), each)
    zero, step = ir.Constant(size.type, 0), ir.Constant(size.type, LANES)
    with cgutils.for_range_slice(builder, zero, size, step, size.type) as (first, _):
        factor = _load(builder, query, first)
        for each, row in zip(sums, rows, strict=True):
            product = builder.fmul(factor, _load(builder, row, first), flags=_ANY_ORDER)
            builder.store(builder.fadd(builder.load(each), product, flags=_ANY_ORDER), each)
    vectors = [builder.load(each) for each in sums]
    for lanes in _NEIGHBOURS:
        vectors = [
            _added(builder, vectors[pair], vectors[pair + 1], lanes) for pair in range(0, len(vectors), 2)
        ]
    into = builder.bitcast(builder.gep(out, [place]), _VECTOR.as_pointer())
    builder.store(vectors[0], into, align=4)
    return context.get_dummy_value()


def _load(builder: Any, numbers: Any, at: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(numbers, [at]), _VECTOR.as_pointer()), align=4)


def _added(builder: Any, one: Any, two: Any, lanes: tuple[tuple[int, ...], ...]) -> Any:
    left, right = (
        builder.shuffle_vector(one, two, ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(some)))
        for some in lanes
    )
    return builder.fadd(left, right, flags=_ANY_ORDER)


@intrinsic
def prefetch(_: Any, numbers: Any, at: Any) -> Any:
    """Ask for numbers[at] of a flat array; `at` may lie anywhere."""
    return types.void(numbers, types.int64), _prefetch


def _prefetch(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    numbers = context.make_array(signature.args[0])(context, builder, args[0]).data
    address, flag = cgutils.voidptr_t, ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), (address, flag, flag, flag))
    ask = builder.module.declare_intrinsic("llvm.prefetch", (address,), kind)
    to_read, keep, data = (ir.Constant(flag, number) for number in (0, 3, 1))
    builder.call(ask, [builder.bitcast(builder.gep(numbers, [args[1]]), address), to_read, keep, data])
    return context.get_dummy_value()
