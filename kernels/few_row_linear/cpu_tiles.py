"""Tiles of a product: some rows of a weight times some rows of inputs, all sums held in registers."""
# ruff: noqa: ARG001 - Numba looks at the names of an intrinsic's arguments

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from headway.kernels.cpu_ir import ask, floats, lanes_of, load, multiply_add, store, summed

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
HIGH = 4  # rows of weights in a tile
WIDE = LANES // HIGH  # rows of inputs: a tile has as many sums as a vector has lanes


@intrinsic
def multiply_tile(
    _: Any, weight: Any, row: Any, inputs: Any, first: Any, count: Any, size: Any, coming: Any, out: Any,
    width: Any,
) -> Any:  # fmt: skip
    """out[i, row + r] = weight[row + r] times inputs[i], for `HIGH` numbers r and `WIDE` i from `first` on.

    weight `[.., size]` as `flat` gives it, inputs `[count, size]` and out `[.., width]` dense float32; size:
    a multiple of `LANES`. Inputs from `count` on are the last one again. coming: rows of the weight that are
    asked for meanwhile, any number of them.
    """
    whole = types.int64
    return types.void(weight, whole, inputs, whole, whole, whole, coming, out, whole), _multiply_tile


def _multiply_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    weight, inputs, out = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 7)
    )
    row, (first, count, size), width, kind = args[1], args[3:6], args[8], signature.args[0].dtype

    def whole(number: int) -> Any:
        return ir.Constant(size.type, number)

    def start(numbers: Any, each: Any) -> Any:
        return builder.gep(numbers, [builder.mul(each, size)])

    last, places = builder.sub(count, whole(1)), [builder.add(first, whole(c)) for c in range(WIDE)]
    among = [builder.select(builder.icmp_signed("<", place, last), place, last) for place in places]
    columns = [start(inputs, each) for each in among]
    rows = [start(weight, builder.add(row, whole(r))) for r in range(HIGH)]
    coming = [start(weight, each) for each in cgutils.unpack_tuple(builder, args[6])]  # type: ignore[no-untyped-call]
    sums = [cgutils.alloca_once(builder, floats(LANES)) for _ in range(LANES)]  # type: ignore[no-untyped-call]
    for each in sums:
        builder.store(ir.Constant(floats(LANES), [0.0] * LANES), each)
    with cgutils.for_range_slice(builder, whole(0), size, whole(LANES), size.type) as (channel, _):
        factors = [load(builder, each, channel, kind, LANES) for each in rows]
        for each in coming:
            ask(builder, each, channel)
        for c, column in enumerate(columns):
            numbers = load(builder, column, channel, types.float32, LANES)
            for r, factor in enumerate(factors):
                multiply_add(builder, sums[c * HIGH + r], factor, numbers)
    total = summed(builder, [builder.load(each) for each in sums])
    for c, place in enumerate(places):
        mine = lanes_of(builder, total, total, tuple(range(c * HIGH, (c + 1) * HIGH)))
        store(builder, mine, out, builder.add(builder.mul(place, width), row))
    return context.get_dummy_value()
