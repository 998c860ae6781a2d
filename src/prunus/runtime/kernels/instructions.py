"""Instructions on vectors of floats, which kernels are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

__all__ = ["FLOAT", "INT32", "INT64", "Body", "Code"]

FLOAT = ir.FloatType()
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)

Body = Callable[[Any, list[Any]], list[Any]]
"""Returns the sums after a round of a loop, given its number and the sums before."""


class Code:
    """A builder of instructions on vectors of float32, within a function that Numba compiles."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector = ir.VectorType(FLOAT, lanes)
        self.integers = ir.VectorType(INT32, lanes)

    def pointer(self, address: Any, item_type: Any) -> Any:
        return self.builder.inttoptr(address, item_type.as_pointer())

    def load(self, address: Any, item_type: Any = None) -> Any:
        """Return a number of a type at an address, or a vector of floats or of another type."""
        if item_type is not None and not isinstance(item_type, ir.VectorType):
            return self.builder.load(self.pointer(address, item_type))
        return self.builder.load(self.pointer(address, item_type or self.vector), align=4)

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.pointer(address, value.type), align=4)

    def prefetch(self, address: Any) -> None:
        """Begin to load the cache line of an address into the first-level cache."""
        byte_pointer = ir.IntType(8).as_pointer()
        function = self.intrinsic("llvm.prefetch.p0i8", ir.VoidType(), [byte_pointer, *[INT32] * 3])
        read, keep, data = 0, 3, 1
        hints = [ir.Constant(INT32, number) for number in (read, keep, data)]
        self.builder.call(function, [self.builder.inttoptr(address, byte_pointer), *hints])

    def intrinsic(self, name: str, result: Any, arguments: list[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(
            module, ir.FunctionType(result, arguments), name
        )

    def minimum(self, left: Any, right: Any) -> Any:
        """Return the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", left, right), left, right)

    def sum(self, left: Any, right: Any) -> Any:
        """Return the sum of two numbers or vectors, of floats or integers."""
        item_type = getattr(left.type, "element", left.type)
        is_integer = isinstance(item_type, ir.IntType)
        return (self.builder.add if is_integer else self.builder.fadd)(left, right)

    def add(self, number: Any, step: Any) -> Any:
        step = ir.Constant(INT64, step) if isinstance(step, int) else step
        return self.builder.add(number, step)

    def multiply(self, number: Any, factor: Any) -> Any:
        factor = ir.Constant(INT64, factor) if isinstance(factor, int) else factor
        return self.builder.mul(number, factor)

    def broadcast(self, scalar: Any) -> Any:
        """Return a vector with one number in all lanes."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def shuffle(self, left: Any, right: Any, order: Sequence[int]) -> Any:
        mask = ir.Constant(ir.VectorType(INT32, len(order)), list(order))
        return self.builder.shuffle_vector(left, right, mask)

    def multiply_add(self, left: Any, right: Any, added: Any) -> Any:
        """Return ``left * right + added``, rounded once."""
        item_type = left.type
        is_vector = isinstance(item_type, ir.VectorType)
        name = f"llvm.fma.v{item_type.count}f32" if is_vector else "llvm.fma.f32"
        function = self.intrinsic(name, item_type, [item_type] * 3)
        return self.builder.call(function, [left, right, added])

    def index(self, address: Any, k: Any, bits: int) -> Any:
        """Return the k-th of the unsigned integers with the given number of bits at an address."""
        index_type = ir.IntType(bits)
        return self.builder.zext(
            self.load(self.add(address, self.multiply(k, bits // 8)), index_type), INT64
        )

    def loop(
        self, start: Any, stop: Any, step: int, sums: list[Any], body: Body
    ) -> tuple[Any, Any]:
        """Run ``body(k, sums)`` for k from start in steps while k < stop, with sums in registers.

        Returns:
            The sums and k after the loop.
        """
        builder, before = self.builder, self.builder.block
        head, inner, after = (builder.append_basic_block(name) for name in ("head", "in", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(INT64)
        k.add_incoming(start, before)
        carried = [builder.phi(value.type) for value in sums]
        for phi, value in zip(carried, sums, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", k, stop), inner, after)
        builder.position_at_end(inner)
        results = body(k, carried)
        following = builder.add(k, ir.Constant(INT64, step))
        last = builder.block
        k.add_incoming(following, last)
        for phi, value in zip(carried, results, strict=True):
            phi.add_incoming(value, last)
        builder.branch(head)
        builder.position_at_end(after)
        return carried, k

    def unrolled(self, begin: Any, end: Any, times: int, sums: list[Any], body: Body) -> list[Any]:
        """Run ``body`` for every k in [begin, end), ``times`` at once, each with its own sums.

        An addition to a sum waits some cycles for the previous one, in which the other sums
        progress.
        """
        builder, count = self.builder, len(sums)
        zeros = [ir.Constant(value.type, None) for value in sums]
        rounds = builder.sdiv(builder.sub(end, begin), ir.Constant(INT64, times))
        whole = self.multiply(rounds, times)

        def several(k: Any, carried: list[Any]) -> list[Any]:
            results: list[Any] = []
            for u in range(times):
                results += body(self.add(k, u), carried[u * count : (u + 1) * count])
            return results

        many = sums + zeros * (times - 1)
        many, k = self.loop(begin, builder.add(begin, whole), times, many, several)
        total: list[Any] = self.loop(k, end, 1, many[:count], body)[0]
        for u in range(1, times):
            others = many[u * count : (u + 1) * count]
            total = [self.sum(a, b) for a, b in zip(total, others, strict=True)]
        return total

    def at_least(self, value: Any, floor: Any) -> Any:
        """Return the larger number; NaN stays NaN, as in torch's ReLU."""
        below = self.builder.fcmp_ordered("<", value, floor)
        return self.builder.select(below, floor, value)

    def maximum(self, left: Any, right: Any) -> Any:
        """Return the larger number; NaN wins, as in torch's pooling."""
        above = self.builder.fcmp_ordered(">", right, left)
        is_nan = self.builder.fcmp_unordered("uno", right, right)
        return self.builder.select(self.builder.or_(above, is_nan), right, left)
