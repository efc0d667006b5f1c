"""What intrinsics of compiled kernels are put together from: vectors of floats, in LLVM's language."""

from typing import Any

from llvmlite import ir
from numba import types

ANY_ORDER = ("contract", "reassoc", "nsz")
BIT32 = ir.IntType(32)
QUAD = 4  # numbers that instructions shuffle among themselves


def floats(lanes: int) -> Any:
    """A vector of float32."""
    return ir.VectorType(ir.FloatType(), lanes)


def load(builder: Any, numbers: Any, at: Any, kind: Any, lanes: int) -> Any:
    """So many numbers from `at` on, as float32; kind: Numba's name for them, one that `widen` takes."""
    address = builder.gep(numbers, [at])

    def read(element: Any, align: int) -> Any:
        return builder.load(builder.bitcast(address, ir.VectorType(element, lanes).as_pointer()), align=align)

    def bits(each: int) -> Any:
        return ir.Constant(ir.VectorType(BIT32, lanes), [each] * lanes)

    if kind == types.float32:
        return read(ir.FloatType(), 4)
    if kind == types.float64:
        return builder.fptrunc(read(ir.DoubleType(), 8), floats(lanes))
    half = builder.zext(read(ir.IntType(16), 2), bits(0).type)
    if kind == types.int16:  # bfloat16: the upper half of a float32
        return builder.bitcast(builder.shl(half, bits(16)), floats(lanes))
    magnitude = builder.shl(builder.and_(half, bits(0x7FFF)), bits(13))
    sign = builder.shl(builder.and_(half, bits(0x8000)), bits(16))
    endless = builder.icmp_unsigned("==", builder.and_(half, bits(0x7C00)), bits(0x7C00))
    exponent = builder.select(endless, bits(0x7F800000), bits(0))
    widened = builder.bitcast(builder.or_(builder.or_(magnitude, sign), exponent), floats(lanes))
    return builder.fmul(widened, ir.Constant(floats(lanes), [2.0**112] * lanes))


def store(builder: Any, vector: Any, numbers: Any, at: Any) -> None:
    """Its float32 numbers from `at` on."""
    address = builder.bitcast(builder.gep(numbers, [at]), vector.type.as_pointer())
    builder.store(vector, address, align=4)


def multiply_add(builder: Any, held: Any, one: Any, two: Any) -> None:
    """Add a product to the vector that is held at an address."""
    product = builder.fmul(one, two, flags=ANY_ORDER)
    builder.store(builder.fadd(builder.load(held), product, flags=ANY_ORDER), held)


def lanes_of(builder: Any, one: Any, two: Any, lanes: tuple[int, ...]) -> Any:
    """A vector of lanes of two others, those of the second numbered behind those of the first."""
    return builder.shuffle_vector(one, two, ir.Constant(ir.VectorType(BIT32, len(lanes)), list(lanes)))


def summed(builder: Any, vectors: list[Any]) -> Any:
    """The sum across each of as many vectors as they have lanes, as one vector.

    Summed side by side: half the instructions that sums one by one take.
    """
    for left, right in _neighbours(len(vectors)):
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(lanes_of(builder, *pair, left), lanes_of(builder, *pair, right), flags=ANY_ORDER)
            for pair in pairs
        ]
    return vectors[0]


def _neighbours(lanes: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of two vectors: the lanes that are added to each other, after which both lie in one; round by round."""

    def within(*quad: int) -> tuple[int, ...]:
        firsts = range(0, lanes, QUAD)
        return tuple(first + (i if i < QUAD else lanes + i - QUAD) for first in firsts for i in quad)

    rounds = [(within(0, 4, 1, 5), within(2, 6, 3, 7)), (within(0, 1, 4, 5), within(2, 3, 6, 7))]
    apart = QUAD
    while apart < lanes:
        own = [lane + (lanes - apart if lane & apart else 0) for lane in range(lanes)]
        rounds.append((tuple(own), tuple(lane + apart for lane in own)))
        apart *= 2
    return rounds


def ask(builder: Any, numbers: Any, at: Any) -> None:
    """Have numbers[at] fetched; `at` may lie anywhere."""
    address, flag = ir.IntType(8).as_pointer(), BIT32
    kind = ir.FunctionType(ir.VoidType(), (address, flag, flag, flag))
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", (address,), kind)
    to_read, keep, data = (ir.Constant(flag, each) for each in (0, 3, 1))
    builder.call(prefetch, [builder.bitcast(builder.gep(numbers, [at]), address), to_read, keep, data])
