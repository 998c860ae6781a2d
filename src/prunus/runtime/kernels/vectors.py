"""The innermost loops, written as vector instructions of LLVM.

Numba leaves vectorization to LLVM, which keeps sums over rows of differing lengths in memory
instead of registers. These functions build the instructions themselves, for vectors of any power of
two of lanes; LLVM maps them to the processor at hand. All of them accept addresses as integers and
steps in bytes, and none of them checks a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from prunus.runtime.kernels.arithmetic import Arithmetic, products_of
from prunus.runtime.kernels.instructions import FLOAT, INT32, INT64, Body, Code

__all__ = [
    "count_nonzero",
    "fill_zeros",
    "float_at",
    "gather_dot",
    "index_at",
    "int_at",
    "maximum_of_windows",
    "multiply_row",
    "record_reader",
    "sampled_dots",
    "store_float",
]

_ADDRESS, _NUMBER = types.uintp, types.int64


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def multiply_row(
    typing: Any,
    lanes: Any,
    across: Any,
    down: Any,
    unroll: Any,
    bits: Any,
    ahead: Any,
    group: Any,
    native: Any,
    values: Any,
    index: Any,
    begin: Any,
    end: Any,
    furthest: Any,
    x: Any,
    x_step: Any,
    x_line: Any,
    y: Any,
    y_line: Any,
    tail: Any,
    bias: Any,
    floor: Any,
    start: Any,
    scale: Any,
) -> Any:
    """Write one tile of one output row: Σₖ values[k] · x[index[k]] + bias, at least floor.

    The tile has ``down`` lines of ``across`` vectors of ``lanes`` floats, or words of several
    numbers (see :mod:`prunus.runtime.kernels.arithmetic`). A sum of integers begins with ``start``,
    and is multiplied by ``scale`` before the bias is added. For k in [begin, end), the floats
    multiplied by values[k] start at x + index[k] · x_step, with x_line between lines; the outputs
    start at y, with y_line between lines. The last vector of a line, even the only one, starts
    ``tail`` bytes after the line does, for x and y alike: at the end of the vector before it, or
    earlier if less than a vector is left.

    The first eight arguments must be literal numbers: the shape of the tile, how many k are
    processed at once, the bits of an index, how many k in advance the inputs are prefetched (0: not
    at all), and the arithmetic. ``furthest`` is the largest k whose index may be read for
    prefetching.
    """
    width, columns, lines, times, size, distance, count = (
        literal.literal_value for literal in (lanes, across, down, unroll, bits, ahead, group)
    )
    arithmetic = Arithmetic(count, native=bool(native.literal_value))
    numbers = [
        _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _NUMBER, _ADDRESS, _NUMBER, _NUMBER, _ADDRESS,
        _NUMBER, _NUMBER, types.float32, types.float32, _NUMBER, types.float32,
    ]  # fmt: skip
    signature = types.void(lanes, across, down, unroll, bits, ahead, group, native, *numbers)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_values, at_index, first, last, limit, at_x, step, line_of_x = arguments[8:16]
        at_y, line_of_y, last_vector, added, least, begun, factor = arguments[16:]
        code = Code(builder, width)
        products = products_of(arithmetic, code)

        def vectors_from(address: Any, line: Any) -> list[Any]:
            addresses = []
            for row in range(lines):
                address = code.add(address, line) if row else address
                steps = [column * width * 4 for column in range(columns - 1)]
                addresses += [code.add(address, step) for step in [*steps, last_vector]]
            return addresses

        def inputs_of(k: Any) -> list[Any]:
            start = code.add(at_x, code.multiply(code.index(at_index, k, size), step))
            return vectors_from(start, line_of_x)

        def accumulate(k: Any, sums: list[Any]) -> list[Any]:
            if distance:
                for address in inputs_of(code.minimum(code.add(k, distance), limit)):
                    code.prefetch(address)
            weight = products.weight(code.add(at_values, code.multiply(k, 4)))
            return [
                products.multiply_add(weight, address, total)
                for address, total in zip(inputs_of(k), sums, strict=True)
            ]

        sums = [products.first(added, begun)] * (columns * lines)
        floors = code.broadcast(least)
        totals = code.unrolled(first, last, times, sums, accumulate)
        for address, total in zip(vectors_from(at_y, line_of_y), totals, strict=True):
            code.store(code.at_least(products.result(total, factor, added), floors), address)
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def gather_dot(
    typing: Any, unroll: Any, bits: Any, values: Any, index: Any, begin: Any, end: Any, x: Any
) -> Any:
    """Return Σₖ values[k] · x[index[k]] for k in [begin, end), of single floats.

    ``unroll`` and ``bits`` must be literal numbers, as in :func:`multiply_row`.
    """
    times, size = unroll.literal_value, bits.literal_value
    signature = types.float32(unroll, bits, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _ADDRESS)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_values, at_index, first, last, at_x = arguments[2:]
        code = Code(builder, 1)

        def accumulate(k: Any, sums: list[Any]) -> list[Any]:
            weight = code.load(code.add(at_values, code.multiply(k, 4)), FLOAT)
            address = code.add(at_x, code.multiply(code.index(at_index, k, size), 4))
            return [code.multiply_add(weight, code.load(address, FLOAT), sums[0])]

        zero = ir.Constant(FLOAT, 0.0)
        (total,) = code.unrolled(first, last, times, [zero], accumulate)
        return total

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def sampled_dots(
    typing: Any,
    lanes: Any,
    group: Any,
    bits: Any,
    index: Any,
    k: Any,
    x: Any,
    x_step: Any,
    y: Any,
    size: Any,
    sums: Any,
) -> Any:
    """Add to sums[k + g], for each g < group, the dot product of a line of x with the line y.

    The line of x starts at x + index[k + g] · x_step. ``size`` is the bytes of a line, a multiple
    of ``lanes`` floats. The first three arguments must be literal numbers, powers of two: the
    floats of a vector, how many products are computed at once, at most ``lanes``, and the bits of
    an index.
    """
    width, count, index_bits = (literal.literal_value for literal in (lanes, group, bits))
    numbers = [_ADDRESS, _NUMBER, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER, _ADDRESS]
    signature = types.void(lanes, group, bits, *numbers)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_index, first, at_x, step, at_y, line_bytes, at_sums = arguments[3:]
        code = Code(builder, width)
        lines = [
            code.add(
                at_x, code.multiply(code.index(at_index, code.add(first, g), index_bits), step)
            )
            for g in range(count)
        ]

        def accumulate(offset: Any, totals: list[Any]) -> list[Any]:
            vector = code.load(code.add(at_y, offset))
            return [
                code.multiply_add(vector, code.load(code.add(line, offset)), total)
                for line, total in zip(lines, totals, strict=True)
            ]

        start, zero = ir.Constant(INT64, 0), ir.Constant(code.vector, [0.0] * width)
        totals: list[Any] = code.loop(start, line_bytes, 4 * width, [zero] * count, accumulate)[0]

        def halve(left: Any, right: Any) -> Any:
            """Return the sums of pairs of neighbors: those of ``left``, then those of ``right``."""
            even, odd = (code.shuffle(left, right, range(i, 2 * width, 2)) for i in (0, 1))
            return builder.fadd(even, odd)

        while len(totals) > 1:
            totals = [halve(*totals[i : i + 2]) for i in range(0, len(totals), 2)]
        total = totals[0]
        for _step in range((width // count).bit_length() - 1):
            total = halve(total, total)
        total = code.shuffle(total, total, range(count))
        target = code.pointer(code.add(at_sums, code.multiply(first, 4)), total.type)
        before = builder.load(target, align=4)
        builder.store(builder.fadd(before, total), target, align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def count_nonzero(typing: Any, lanes: Any, address: Any, count: Any) -> Any:
    """Return how many of ``count`` floats, fewer than 2³¹, are not zero; NaN is not zero.

    ``lanes`` must be a literal number, the floats of a vector.
    """
    width = lanes.literal_value
    signature = types.int64(lanes, _ADDRESS, _NUMBER)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at, number = arguments[1:]

        def counting(code: Code) -> Body:
            zero, integers = ir.Constant(code.vector, [0.0] * code.lanes), code.integers

            def body(k: Any, sums: list[Any]) -> list[Any]:
                floats = code.load(code.add(at, code.multiply(k, 4)))
                nonzero = builder.fcmp_unordered("!=", floats, zero)
                return [builder.add(sums[0], builder.zext(nonzero, integers))]

            return body

        many, single = Code(builder, width), Code(builder, 1)
        whole = many.multiply(builder.sdiv(number, ir.Constant(INT64, width)), width)
        start = ir.Constant(INT64, 0)
        (vector,), k = many.loop(
            start, whole, width, [ir.Constant(many.integers, [0] * width)], counting(many)
        )
        (rest,), _k = single.loop(
            k, number, 1, [ir.Constant(single.integers, [0])], counting(single)
        )
        total = builder.extract_element(rest, ir.Constant(INT32, 0))
        for lane in range(width):
            total = builder.add(total, builder.extract_element(vector, ir.Constant(INT32, lane)))
        return builder.zext(total, INT64)

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def fill_zeros(typing: Any, address: Any, size: Any) -> Any:
    """Write zeros into ``size`` bytes at an address."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        target = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        cgutils.memset(builder, target, arguments[1], 0)
        return context.get_dummy_value()

    return types.void(_ADDRESS, _NUMBER), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def maximum_of_windows(
    typing: Any, lanes: Any, height: Any, width: Any, step: Any, x: Any, x_line: Any, y: Any
) -> Any:
    """Write the largest float of each of ``lanes`` windows that are beside each other.

    The windows have ``height`` lines of ``width`` floats; the first starts at x, each following one
    ``step`` floats further, which is 1 or 2. These four must be literal numbers. Up to ``lanes``
    floats beyond the last window are read.
    """
    count, tall, wide, by = (literal.literal_value for literal in (lanes, height, width, step))
    signature = types.void(lanes, height, width, step, _ADDRESS, _NUMBER, _ADDRESS)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_x, line, at_y = arguments[4:]
        code = Code(builder, count)
        largest: Any = None
        for row in range(tall):
            start = code.add(at_x, code.multiply(line, row))
            for column in range(wide):
                current = code.load(code.add(start, 4 * column))
                if by == 2:
                    after = code.load(code.add(start, 4 * (column + count)))
                    current = code.shuffle(current, after, range(0, 2 * count, 2))
                largest = current if largest is None else code.maximum(largest, current)
        code.store(largest, at_y)
        return context.get_dummy_value()

    return signature, generate


def record_reader(record: Any) -> Any:
    """Return the intrinsic that reads a record of 64-bit integers at an address.

    Args:
        record: A ``NamedTuple`` of integers, which the intrinsic returns.
    """
    count = len(record._fields)

    @intrinsic  # type: ignore[untyped-decorator]
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            code = Code(builder, 1)
            numbers = [code.load(code.add(arguments[0], 8 * i), INT64) for i in range(count)]
            return context.make_tuple(builder, signature.return_type, numbers)

        return types.NamedUniTuple(_NUMBER, count, record)(_ADDRESS), generate

    return read


def _load_item(item_type: Any) -> Callable[..., Any]:
    """Return the code generator that loads the i-th float or 64-bit integer at an address."""
    size = 4 if item_type is FLOAT else 8

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        address, i = arguments
        code = Code(builder, 1)
        return code.load(code.add(address, code.multiply(i, size)), item_type)

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def float_at(typing: Any, address: Any, i: Any) -> Any:
    """Return the i-th float at an address."""
    return types.float32(_ADDRESS, _NUMBER), _load_item(FLOAT)


@intrinsic  # type: ignore[untyped-decorator]
def int_at(typing: Any, address: Any, i: Any) -> Any:
    """Return the i-th 64-bit integer at an address."""
    return types.int64(_ADDRESS, _NUMBER), _load_item(INT64)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def index_at(typing: Any, bits: Any, address: Any, k: Any) -> Any:
    """Return the k-th of the unsigned integers of ``bits`` bits, a literal number."""
    size = bits.literal_value

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        return Code(builder, 1).index(arguments[1], arguments[2], size)

    return types.int64(bits, _ADDRESS, _NUMBER), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_float(typing: Any, address: Any, i: Any, value: Any) -> Any:
    """Write the i-th float at an address."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        code = Code(builder, 1)
        offset = code.multiply(arguments[1], 4)
        builder.store(arguments[2], code.pointer(code.add(arguments[0], offset), FLOAT))
        return context.get_dummy_value()

    return types.void(_ADDRESS, _NUMBER, types.float32), generate
