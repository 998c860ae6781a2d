"""The innermost loops, written in the compiler's own language of vectors.

Numba leaves the choice of vectors to LLVM's auto-vectoriser, which keeps sums over rows of
differing lengths in memory instead of registers. These functions build the wanted instructions
themselves, for vectors of any power of two of lanes: LLVM fits them to the processor at hand. All
of them take addresses as whole numbers, and steps in bytes; none of them checks a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = [
    "float_at",
    "gather_dot",
    "largest",
    "number_at",
    "put_float",
    "sum_of_rows",
    "transposed",
]

_FLOAT = ir.FloatType()
_SHORT = ir.IntType(32)
_LONG = ir.IntType(64)

_Body = Callable[[Any, list[Any]], list[Any]]


class _Code:
    """Instructions on vectors of float32, appended to a function that Numba compiles."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector = ir.VectorType(_FLOAT, lanes)

    def at(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def load(self, address: Any, kind: Any = None) -> Any:
        if kind is not None:
            return self.builder.load(self.at(address, kind))
        return self.builder.load(self.at(address, self.vector), align=4)  # it may start anywhere

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.at(address, self.vector), align=4)

    def fetch(self, address: Any) -> None:
        """Begin to bring the cache line of an address into the first cache, to be read soon."""
        kind = ir.IntType(8).as_pointer()
        function = self._intrinsic("llvm.prefetch.p0i8", ir.VoidType(), [kind, *[_SHORT] * 3])
        reading, keep, data = 0, 3, 1
        hints = [ir.Constant(_SHORT, number) for number in (reading, keep, data)]
        self.builder.call(function, [self.builder.inttoptr(address, kind), *hints])

    def _intrinsic(self, name: str, result: Any, arguments: list[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(
            module, ir.FunctionType(result, arguments), name
        )

    def smaller(self, one: Any, other: Any) -> Any:
        """Return the smaller of two whole numbers."""
        return self.builder.select(self.builder.icmp_signed("<", one, other), one, other)

    def plus(self, address: Any, step: Any) -> Any:
        step = ir.Constant(_LONG, step) if isinstance(step, int) else step
        return self.builder.add(address, step)

    def times(self, number: Any, factor: Any) -> Any:
        factor = ir.Constant(_LONG, factor) if isinstance(factor, int) else factor
        return self.builder.mul(number, factor)

    def splat(self, scalar: Any) -> Any:
        """Return a vector of one number."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, scalar, ir.Constant(_SHORT, 0))
        return self.shuffled(first, nothing, [0] * self.lanes)

    def shuffled(self, one: Any, other: Any, order: Sequence[int]) -> Any:
        mask = ir.Constant(ir.VectorType(_SHORT, len(order)), list(order))
        return self.builder.shuffle_vector(one, other, mask)

    def multiply_add(self, one: Any, other: Any, added: Any) -> Any:
        """Return ``one * other + added``, rounded once."""
        kind = one.type
        name = f"llvm.fma.v{kind.count}f32" if isinstance(kind, ir.VectorType) else "llvm.fma.f32"
        return self.builder.call(self._intrinsic(name, kind, [kind] * 3), [one, other, added])

    def index(self, address: Any, k: Any, bits: int) -> Any:
        """Return the k-th of the unsigned numbers of so many bits that lie at an address."""
        kind = ir.IntType(bits)
        return self.builder.zext(
            self.load(self.plus(address, self.times(k, bits // 8)), kind), _LONG
        )

    def loop(
        self, start: Any, stop: Any, step: int, sums: list[Any], body: _Body
    ) -> tuple[Any, Any]:
        """Run ``body(k, sums)`` for k from start in steps while k < stop, with sums in registers.

        Returns:
            The sums afterwards, and k.
        """
        builder, before = self.builder, self.builder.block
        head, inner, after = (builder.append_basic_block(name) for name in ("head", "in", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(_LONG)
        k.add_incoming(start, before)
        carried = [builder.phi(value.type) for value in sums]
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", k, stop), inner, after)
        builder.position_at_end(inner)
        results = body(k, carried)
        following = builder.add(k, ir.Constant(_LONG, step))
        last = builder.block
        k.add_incoming(following, last)
        for phi, value in zip(carried, results, strict=True):
            phi.add_incoming(value, last)
        builder.branch(head)
        builder.position_at_end(after)
        return carried, k

    def unrolled(self, begin: Any, end: Any, times: int, sums: list[Any], body: _Body) -> list[Any]:
        """Run ``body`` for every k in [begin, end), so many at a time, with sums of their own.

        A sum can take up a product only when it has the one before, after some cycles, in which the
        others are served.
        """
        builder, own = self.builder, len(sums)
        zeros = [ir.Constant(value.type, self._zero(value.type)) for value in sums]
        whole = self.times(builder.sdiv(builder.sub(end, begin), ir.Constant(_LONG, times)), times)

        def several(k: Any, carried: list[Any]) -> list[Any]:
            results: list[Any] = []
            for u in range(times):
                results += body(self.plus(k, u), carried[u * own : (u + 1) * own])
            return results

        many = sums + zeros * (times - 1)
        many, k = self.loop(begin, builder.add(begin, whole), times, many, several)
        total: list[Any] = self.loop(k, end, 1, many[:own], body)[0]
        for u in range(1, times):
            others = many[u * own : (u + 1) * own]
            total = [builder.fadd(a, b) for a, b in zip(total, others, strict=True)]
        return total

    @staticmethod
    def _zero(kind: Any) -> Any:
        return [0.0] * kind.count if isinstance(kind, ir.VectorType) else 0.0

    def at_least(self, value: Any, floor: Any) -> Any:
        """Return the larger; NaN stays NaN, as in torch's rectifier."""
        below = self.builder.fcmp_ordered("<", value, floor)
        return self.builder.select(below, floor, value)

    def larger(self, one: Any, other: Any) -> Any:
        """Return the larger; NaN wins, as in torch's pooling."""
        above = self.builder.fcmp_ordered(">", other, one)
        no_number = self.builder.fcmp_unordered("uno", other, other)
        return self.builder.select(self.builder.or_(above, no_number), other, one)


_ADDRESS, _NUMBER = types.uintp, types.int64


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def sum_of_rows(
    typing: Any,
    lanes: Any,
    across: Any,
    down: Any,
    unroll: Any,
    bits: Any,
    ahead: Any,
    values: Any,
    index: Any,
    begin: Any,
    end: Any,
    most: Any,
    x: Any,
    scale: Any,
    x_down: Any,
    y: Any,
    y_down: Any,
    tail: Any,
    bias: Any,
    floor: Any,
) -> Any:
    """Write one tile of one output row: Σₖ values[k] · x[index[k]], plus bias, at least floor.

    The tile has ``down`` lines of ``across`` vectors of ``lanes`` floats. With k in [begin, end),
    the floats that values[k] is multiplied by start at x + index[k] · scale, and each line x_down
    after the one before; what is written starts at y, and each line y_down after the one before.
    The last vector of a line, even of one vector, is ``tail`` bytes from where the line starts,
    there as here: where the one before it ends, or earlier, if less is left than a vector.

    The first six arguments must be literal numbers: the shape of the tile, how many k are worked
    on at a time, how many bits each index has, and for how many k in advance what they will read is
    to be fetched into the first cache (0: not at all). ``most`` is the largest k whose index may be
    read for that.
    """
    width, columns, lines, times, size, distance = (
        kind.literal_value for kind in (lanes, across, down, unroll, bits, ahead)
    )
    numbers = [
        _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _NUMBER, _ADDRESS, _NUMBER, _NUMBER, _ADDRESS,
        _NUMBER, _NUMBER,
    ]  # fmt: skip
    signature = types.void(
        lanes, across, down, unroll, bits, ahead, *numbers, types.float32, types.float32
    )

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_values, at_index, first, last, furthest, at_x, step, x_line = arguments[6:14]
        at_y, y_line, last_vector, added, least = arguments[14:]
        code = _Code(builder, width)

        def places(address: Any, line: Any) -> list[Any]:
            found = []
            for row in range(lines):
                address = code.plus(address, line) if row else address
                steps = [column * width * 4 for column in range(columns - 1)]
                found += [code.plus(address, step) for step in [*steps, last_vector]]
            return found

        def read_by(k: Any) -> list[Any]:
            start = code.plus(at_x, code.times(code.index(at_index, k, size), step))
            return places(start, x_line)

        def one(k: Any, sums: list[Any]) -> list[Any]:
            if distance:
                for place in read_by(code.smaller(code.plus(k, distance), furthest)):
                    code.fetch(place)
            weight = code.splat(code.load(code.plus(at_values, code.times(k, 4)), _FLOAT))
            return [
                code.multiply_add(weight, code.load(place), total)
                for place, total in zip(read_by(k), sums, strict=True)
            ]

        sums = [code.splat(added)] * (columns * lines)
        limit = code.splat(least)
        for place, total in zip(
            places(at_y, y_line), code.unrolled(first, last, times, sums, one), strict=True
        ):
            code.store(code.at_least(total, limit), place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def gather_dot(
    typing: Any, unroll: Any, bits: Any, values: Any, index: Any, begin: Any, end: Any, x: Any
) -> Any:
    """Return Σₖ values[k] · x[index[k]] for k in [begin, end), of single floats.

    ``unroll`` and ``bits`` must be literal numbers, as in :func:`sum_of_rows`.
    """
    times, size = unroll.literal_value, bits.literal_value
    signature = types.float32(unroll, bits, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _ADDRESS)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_values, at_index, first, last, at_x = arguments[2:]
        code = _Code(builder, 1)

        def one(k: Any, sums: list[Any]) -> list[Any]:
            weight = code.load(code.plus(at_values, code.times(k, 4)), _FLOAT)
            place = code.plus(at_x, code.times(code.index(at_index, k, size), 4))
            return [code.multiply_add(weight, code.load(place, _FLOAT), sums[0])]

        (total,) = code.unrolled(first, last, times, [ir.Constant(_FLOAT, 0.0)], one)
        return total

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def transposed(typing: Any, lanes: Any, x: Any, x_step: Any, y: Any, y_step: Any) -> Any:
    """Write the transpose of a square of ``lanes`` × ``lanes`` floats, a literal number.

    Its lines start at x, x + x_step, …, and those of the transpose at y, y + y_step, ….
    """
    width = lanes.literal_value
    signature = types.void(lanes, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_x, x_line, at_y, y_line = arguments[1:]
        code, half = _Code(builder, width), width // 2
        lines = [code.load(code.plus(at_x, code.times(x_line, row))) for row in range(width)]
        # To interleave each line of the upper half with its fellow of the lower one, and that
        # log₂(lanes) times, turns the bits of (line, column) round by as many places.
        low = [lane // 2 + width * (lane % 2) for lane in range(width)]
        high = [half + place for place in low]
        for _step in range(half.bit_length()):
            pairs = [(lines[row], lines[row + half]) for row in range(half)]
            lines = [code.shuffled(*pair, order) for pair in pairs for order in (low, high)]
        for row, line in enumerate(lines):
            code.store(line, code.plus(at_y, code.times(y_line, row)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def largest(
    typing: Any, lanes: Any, height: Any, width: Any, step: Any, x: Any, x_line: Any, y: Any
) -> Any:
    """Write ``lanes`` floats beside each other, the largest of a window each.

    The windows have ``height`` lines of ``width`` floats; the first starts at x, each next one
    ``step`` floats further, which is 1 or 2. All four must be literal numbers. Up to ``lanes``
    floats are read beyond the last window.
    """
    count, tall, wide, by = (kind.literal_value for kind in (lanes, height, width, step))
    signature = types.void(lanes, height, width, step, _ADDRESS, _NUMBER, _ADDRESS)

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        at_x, line, at_y = arguments[4:]
        code = _Code(builder, count)
        best: Any = None
        for row in range(tall):
            start = code.plus(at_x, code.times(line, row))
            for column in range(wide):
                here = code.load(code.plus(start, 4 * column))
                if by == 2:
                    after = code.load(code.plus(start, 4 * (column + count)))
                    here = code.shuffled(here, after, range(0, 2 * count, 2))
                best = here if best is None else code.larger(best, here)
        code.store(best, at_y)
        return context.get_dummy_value()

    return signature, generate


def _element(kind: Any) -> Callable[..., Any]:
    """Return what reads the i-th number of a kind, floats or of 64 bits, at an address."""
    size = 4 if kind is _FLOAT else 8

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        address, i = arguments
        code = _Code(builder, 1)
        return code.load(code.plus(address, code.times(i, size)), kind)

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def float_at(typing: Any, address: Any, i: Any) -> Any:
    """Return the i-th float at an address."""
    return types.float32(_ADDRESS, _NUMBER), _element(_FLOAT)


@intrinsic  # type: ignore[untyped-decorator]
def number_at(typing: Any, address: Any, i: Any) -> Any:
    """Return the i-th whole number of 64 bits at an address."""
    return types.int64(_ADDRESS, _NUMBER), _element(_LONG)


@intrinsic  # type: ignore[untyped-decorator]
def put_float(typing: Any, address: Any, i: Any, value: Any) -> Any:
    """Write the i-th float at an address."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        code = _Code(builder, 1)
        place = code.at(code.plus(arguments[0], code.times(arguments[1], 4)), _FLOAT)
        builder.store(arguments[2], place)
        return context.get_dummy_value()

    return types.void(_ADDRESS, _NUMBER, types.float32), generate
