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

from headway.kernels.cpu_ir import BIT32, ask, floats, lanes_of, load, multiply_add, store, summed

LANES = 8  # numbers of a vector; rows that are multiplied at a time
WIDE = 4 * LANES  # numbers of a row that are added at a time

_VECTOR = floats(LANES)


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
        factor = load(builder, query, channel, types.float32, LANES)
        for each, row in zip(sums, rows, strict=True):
            multiply_add(builder, each, factor, load(builder, row, channel, kind, LANES))
    store(builder, summed(builder, [builder.load(each) for each in sums]), out, place)
    return context.get_dummy_value()


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
            sums.append((into, step, cgutils.alloca_once(builder, _VECTOR)))  # type: ignore[no-untyped-call]
            builder.store(load(builder, into, step, types.float32, LANES), sums[-1][2])
    with cgutils.for_range_slice(builder, first, end, one, first.type) as (t, _):
        row = builder.gep(numbers, [builder.add(builder.load(builder.gep(at, [t])), offset)])
        parts = [load(builder, row, step, kind, LANES) for step in steps]
        for place, (_, _, held) in enumerate(sums):
            weight = _repeated(builder, builder.load(builder.gep(factors[place // len(steps)], [t])))
            multiply_add(builder, held, weight, parts[place % len(steps)])
    for into, step, held in sums:
        store(builder, builder.load(held), into, step)
    return context.get_dummy_value()


def _repeated(builder: Any, one: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), one, ir.Constant(BIT32, 0))
    return lanes_of(builder, vector, vector, (0,) * LANES)


@intrinsic
def prefetch(_: Any, numbers: Any, at: Any) -> Any:
    """Ask for numbers[at] of a flat array; `at` may lie anywhere."""
    return types.void(numbers, types.int64), _prefetch


def _prefetch(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    numbers = context.make_array(signature.args[0])(context, builder, args[0]).data
    ask(builder, numbers, args[1])
    return context.get_dummy_value()
