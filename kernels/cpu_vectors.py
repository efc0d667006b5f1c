"""What loops cannot tell a compiler, for compiled kernels: sums held in vectors, and what to fetch ahead.

A product of one query with one key ends in a sum across a vector, which takes as long as the product. Eight
at a time are summed side by side, in half the instructions that eight sums take. A sum of weighted values
stays in vectors over many tokens, where a loop would store and load it for each.
"""
# ruff: noqa: ARG001 - Numba looks at the names of an intrinsic's arguments

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8  # numbers of a vector; rows that are multiplied at a time
WIDE = 4 * LANES  # numbers of a row that are added at a time

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_HALVES, _BITS = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(ir.IntType(32), LANES)
_ANY_ORDER = ("contract", "reassoc", "nsz")
_NEIGHBOURS = (
    ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
    ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)
"""Of two vectors: the lanes that are added to each other, after which both lie in one; round by round."""


@intrinsic
def eight_dots(
    _: Any, query: Any, start: Any, numbers: Any, at: Any, offset: Any, first: Any, size: Any, out: Any,
    place: Any,
) -> Any:  # fmt: skip
    """out[place + i] = query[start:][:size] times numbers[at[first + i] + offset:][:size], for eight i.

    Arrays are seen as the dense memory they are; query and out float32, numbers as `flat` gives them, at and
    the others int64; `size`: a multiple of `LANES`.
    """
    whole = types.int64
    return types.void(query, whole, numbers, at, whole, whole, whole, out, whole), _eight_dots


def _eight_dots(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    query, numbers, at, out = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 3, 7)
    )
    start, (offset, first, size), place = args[1], args[4:7], args[8]
    kind = signature.args[2].dtype
    query = builder.gep(query, [start])
    places = [builder.gep(at, [builder.add(first, ir.Constant(first.type, row))]) for row in range(LANES)]
    rows = [builder.gep(numbers, [builder.add(builder.load(one), offset)]) for one in places]
    sums = [cgutils.alloca_once(builder, _VECTOR) for _ in rows]  # type: ignore[no-untyped-call]
    for each in sums:
        builder.store(ir.Constant(_VECTOR, [0.0] * LANES), each)
    zero, step = ir.Constant(size.type, 0), ir.Constant(size.type, LANES)
    with cgutils.for_range_slice(builder, zero, size, step, size.type) as (channel, _):
        factor = _load(builder, query, channel, types.float32)
        for each, row in zip(sums, rows, strict=True):
            product = builder.fmul(factor, _load(builder, row, channel, kind), flags=_ANY_ORDER)
            builder.store(builder.fadd(builder.load(each), product, flags=_ANY_ORDER), each)
    vectors = [builder.load(each) for each in sums]
    for lanes in _NEIGHBOURS:
        vectors = [
            _added(builder, vectors[pair], vectors[pair + 1], lanes) for pair in range(0, len(vectors), 2)
        ]
    into = builder.bitcast(builder.gep(out, [place]), _VECTOR.as_pointer())
    builder.store(vectors[0], into, align=4)
    return context.get_dummy_value()


def _load(builder: Any, numbers: Any, at: Any, kind: Any) -> Any:
    """Eight numbers as float32, from what `widen` takes."""
    address = builder.gep(numbers, [at])
    if kind == types.float32:
        return builder.load(builder.bitcast(address, _VECTOR.as_pointer()), align=4)
    if kind == types.float64:
        return builder.fptrunc(
            builder.load(builder.bitcast(address, _DOUBLES.as_pointer()), align=8), _VECTOR
        )
    halves = builder.load(builder.bitcast(address, _HALVES.as_pointer()), align=2)
    bits = builder.zext(halves, _BITS)
    if kind == types.int16:  # bfloat16: the upper half of a float32
        return builder.bitcast(builder.shl(bits, _all(16)), _VECTOR)
    magnitude = builder.shl(builder.and_(bits, _all(0x7FFF)), _all(13))
    sign = builder.shl(builder.and_(bits, _all(0x8000)), _all(16))
    endless = builder.icmp_unsigned("==", builder.and_(bits, _all(0x7C00)), _all(0x7C00))
    exponent = builder.select(endless, _all(0x7F800000), _all(0))
    number = builder.bitcast(builder.or_(builder.or_(magnitude, sign), exponent), _VECTOR)
    return builder.fmul(number, ir.Constant(_VECTOR, [2.0**112] * LANES))


def _all(number: int) -> Any:
    return ir.Constant(_BITS, [number] * LANES)


def _added(builder: Any, one: Any, two: Any, lanes: tuple[tuple[int, ...], ...]) -> Any:
    left, right = (
        builder.shuffle_vector(one, two, ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(some)))
        for some in lanes
    )
    return builder.fadd(left, right, flags=_ANY_ORDER)


@intrinsic
def add_rows(
    _: Any, weights: Any, rows: Any, numbers: Any, at: Any, offset: Any, first: Any, end: Any, out: Any,
    places: Any,
) -> Any:  # fmt: skip
    """out[place:][:WIDE] += weights[row + t] * numbers[at[t] + offset:][:WIDE], for all t from first to end.

    For each row of `rows` and place of `places`, tuples alike, at one reading of numbers. Arrays as for
    `eight_dots`.
    """
    whole = types.int64
    return types.void(weights, rows, numbers, at, whole, whole, whole, out, places), _add_rows


def _add_rows(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    weights, numbers, at, out = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 3, 7)
    )
    offset, first, end = args[4:7]
    kind, one = signature.args[2].dtype, ir.Constant(first.type, 1)
    steps = [ir.Constant(first.type, channel) for channel in range(0, WIDE, LANES)]
    factors, sums = [], []
    for row, place in zip(*(cgutils.unpack_tuple(builder, args[i]) for i in (1, 8)), strict=True):  # type: ignore[no-untyped-call]
        factors.append(builder.gep(weights, [row]))
        into = builder.gep(out, [place])
        for step in steps:
            address = builder.bitcast(builder.gep(into, [step]), _VECTOR.as_pointer())
            sums.append((address, cgutils.alloca_once(builder, _VECTOR)))  # type: ignore[no-untyped-call]
            builder.store(builder.load(address, align=4), sums[-1][1])
    with cgutils.for_range_slice(builder, first, end, one, first.type) as (t, _):
        number = builder.gep(numbers, [builder.add(builder.load(builder.gep(at, [t])), offset)])
        parts = [_load(builder, number, step, kind) for step in steps]
        for place, (_, held) in enumerate(sums):
            weight = _repeated(builder, builder.load(builder.gep(factors[place // len(steps)], [t])))
            product = builder.fmul(weight, parts[place % len(steps)], flags=_ANY_ORDER)
            builder.store(builder.fadd(builder.load(held), product, flags=_ANY_ORDER), held)
    for address, held in sums:
        builder.store(builder.load(held), address, align=4)
    return context.get_dummy_value()


def _repeated(builder: Any, number: Any) -> Any:
    lowest = ir.Constant(ir.IntType(32), 0)
    vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, lowest)
    return builder.shuffle_vector(vector, vector, ir.Constant(_BITS, [0] * LANES))


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
