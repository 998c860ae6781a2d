"""Conversion of floats into words of bfloat16 or int8, in vectors and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from prunus.runtime.kernels.instructions import INT32, INT64, Code

__all__ = ["bits_of_float", "pack_lines", "pack_square", "store_word"]

_ADDRESS, _NUMBER = types.uintp, types.int64

_LARGEST = 255.0
"""The largest activation in int8."""


def _rounded(code: Code, group: int, floats: Any, factor: Any, zero: Any) -> Any:
    """Return the bits of floats in the type of which ``group`` numbers fit into 32 bits."""
    builder = code.builder
    if group == 1:
        return builder.bitcast(floats, code.integers)
    if group == 2:
        return _as_bfloat16(code, floats)
    # A product and a sum, each rounded, as torch computes them.
    scaled = builder.fmul(floats, code.broadcast(factor))
    nearest = code.intrinsic(f"llvm.rint.v{code.lanes}f32", code.vector, [code.vector])
    moved = builder.fadd(builder.call(nearest, [scaled]), code.broadcast(zero))
    for relation, bound in ((">", 0.0), ("<", _LARGEST)):  # a comparison with NaN is false
        limit = ir.Constant(code.vector, [bound] * code.lanes)
        moved = builder.select(builder.fcmp_ordered(relation, moved, limit), moved, limit)
    return builder.fptosi(moved, code.integers)


def _as_bfloat16(code: Code, floats: Any) -> Any:
    """Return the upper halves of floats, rounded to the nearest, ties to even; NaN stays NaN."""
    builder = code.builder

    def constant(number: int) -> Any:
        return ir.Constant(code.integers, [number] * code.lanes)

    bits = builder.bitcast(floats, code.integers)
    is_odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(builder.add(bits, constant(0x7FFF)), is_odd)
    is_nan = builder.fcmp_unordered("uno", floats, floats)
    return builder.select(is_nan, constant(0x7FC0), builder.lshr(rounded, constant(16)))


def _count_of_nan(code: Code, group: int, vectors: Sequence[Any]) -> Any:
    """Return, as a 64-bit integer, a number that is above 0 if int8 would hide a NaN."""
    found = ir.Constant(INT64, 0)
    for floats in vectors if group == 4 else ():
        is_nan = code.builder.fcmp_unordered("uno", floats, floats)
        bits = code.builder.bitcast(is_nan, ir.IntType(code.lanes))
        found = code.builder.or_(found, code.builder.zext(bits, INT64))
    return found


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def pack_square(
    typing: Any,
    lanes: Any,
    group: Any,
    x: Any,
    x_line: Any,
    y: Any,
    y_line: Any,
    factor: Any,
    zero: Any,
) -> Any:
    """Write the transpose of a square of ``lanes`` × ``lanes`` words, computed from floats.

    Lines of ``group`` × ``lanes`` floats start at x, x + x_line, …, and those of the transpose at
    y, y + y_line, …. The first two arguments must be literal numbers. Returns a number above 0 if
    int8 would hide a NaN.
    """
    width, count = lanes.literal_value, group.literal_value
    signature = types.int64(
        lanes, group, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER, types.float32, types.float32
    )

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_x, line_of_x, at_y, line_of_y, scale, shift = arguments[2:]
        code, half = Code(builder, width), width // 2
        narrow = ir.VectorType(ir.IntType(32 // count), width)
        found, lines = ir.Constant(INT64, 0), []
        for row in range(width):
            start = code.add(at_x, code.multiply(line_of_x, row))
            floats = [code.load(code.add(start, 4 * width * part)) for part in range(count)]
            found = builder.or_(found, _count_of_nan(code, count, floats))
            parts = [_rounded(code, count, each, scale, shift) for each in floats]
            if count > 1:
                parts = [builder.trunc(each, narrow) for each in parts]
            while len(parts) > 1:
                parts = [
                    code.shuffle(parts[i], parts[i + 1], range(2 * parts[i].type.count))
                    for i in range(0, len(parts), 2)
                ]
            lines.append(builder.bitcast(parts[0], code.integers))
        # Interleaving each line of the upper half with its counterpart in the lower half,
        # log₂(lanes) times, rotates the bits of (line, column) by as many places.
        low = [lane // 2 + width * (lane % 2) for lane in range(width)]
        high = [half + place for place in low]
        for _step in range(half.bit_length()):
            pairs = [(lines[row], lines[row + half]) for row in range(half)]
            lines = [code.shuffle(*pair, order) for pair in pairs for order in (low, high)]
        for row, line in enumerate(lines):
            code.store(line, code.add(at_y, code.multiply(line_of_y, row)))
        return found

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def pack_lines(
    typing: Any, lanes: Any, group: Any, x: Any, x_line: Any, y: Any, factor: Any, zero: Any
) -> Any:
    """Write ``lanes`` words, each computed from the floats of a column of ``group`` lines.

    The lines start at x, x + x_line, …. The first two arguments must be literal numbers. Returns a
    number above 0 if int8 would hide a NaN.
    """
    width, count = lanes.literal_value, group.literal_value
    signature = types.int64(lanes, group, _ADDRESS, _NUMBER, _ADDRESS, types.float32, types.float32)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_x, line_of_x, at_y, scale, shift = arguments[2:]
        code = Code(builder, width)
        floats = [code.load(code.add(at_x, code.multiply(line_of_x, row))) for row in range(count)]
        words: Any = None
        for place, each in enumerate(floats):
            bits = _rounded(code, count, each, scale, shift)
            if place:
                steps = ir.Constant(code.integers, [32 // count * place] * width)
                bits = builder.or_(words, builder.shl(bits, steps))
            words = bits
        code.store(words, at_y)
        return _count_of_nan(code, count, floats)

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def bits_of_float(typing: Any, group: Any, address: Any, factor: Any, zero: Any) -> Any:
    """Return the bits of the float at an address in the type of which ``group`` fit into a word."""
    count = group.literal_value
    signature = types.int64(group, _ADDRESS, types.float32, types.float32)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_x, scale, shift = arguments[1:]
        code = Code(builder, 1)
        bits = _rounded(code, count, code.load(at_x), scale, shift)
        return builder.zext(builder.extract_element(bits, ir.Constant(INT32, 0)), INT64)

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def store_word(typing: Any, address: Any, i: Any, bits: Any) -> Any:
    """Write the lower 32 bits of an integer as the i-th word at an address."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        code = Code(builder, 1)
        target = code.add(arguments[0], code.multiply(arguments[1], 4))
        word = builder.trunc(arguments[2], INT32)
        builder.store(word, code.pointer(target, INT32))
        return context.get_dummy_value()

    return types.void(_ADDRESS, _NUMBER, _NUMBER), generate
