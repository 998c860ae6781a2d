"""Products of words of weights and activations, in float32, bfloat16 and int8.

A word has 32 bits: one float, two numbers in bfloat16, or four integers of 8 bits, of consecutive
columns of a matrix. In int8, weights are signed and activations are not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core.registry import cpu_target

from prunus.runtime.kernels.instructions import INT32, Code

__all__ = ["FLOAT32", "Arithmetic", "Products", "arithmetic_for", "products_of"]

_INSTRUCTIONS = {1: (), 2: ("+avx512bf16", "+avx512vl"), 4: ("+avx512vnni", "+avx512vl")}
"""The features of a processor that has an instruction for words of this many numbers."""


@dataclass(frozen=True)
class Arithmetic:
    """How words are multiplied.

    Attributes:
        group: Numbers in a word: 1 in float32, 2 in bfloat16, 4 in int8.
        native: Whether the processor's instruction for such words is used. Otherwise their numbers
            are multiplied one after the other, with the same results up to rounding in float32.
    """

    group: int
    native: bool


FLOAT32 = Arithmetic(1, native=True)
"""The arithmetic of single floats."""


@functools.cache
def arithmetic_for(group: int) -> Arithmetic:
    """Return the fastest arithmetic of the processor that Numba compiles for.

    Args:
        group: Numbers in a word.
    """
    _triple, _name, features = cpu_target.target_context.codegen().magic_tuple()
    available = features.split(",")
    return Arithmetic(group, native=all(each in available for each in _INSTRUCTIONS[group]))


class Products:
    """The sums of products in float32.

    Args:
        code: The builder of instructions.
    """

    def __init__(self, code: Code) -> None:
        self.code = code

    def first(self, bias: Any, start: Any) -> Any:
        """Return the vector that the sums begin with.

        Args:
            bias: The row's bias.
            start: The integer that a sum of integers begins with.
        """
        return self.code.broadcast(bias)

    def weight(self, address: Any) -> Any:
        """Return the word at an address in all lanes of a vector."""
        return self.code.broadcast(self.code.load(address, self.code.vector.element))

    def multiply_add(self, weight: Any, address: Any, total: Any) -> Any:
        """Return the sums, and the products of a weight and the activations at an address."""
        return self.code.multiply_add(weight, self.code.load(address), total)

    def result(self, total: Any, scale: Any, bias: Any) -> Any:
        """Return the outputs without ReLU.

        Args:
            total: The sums.
            scale: The factor of a row's sums of integers.
            bias: The row's bias.
        """
        return total


class _Bfloat16Products(Products):
    """The sums of products of pairs in bfloat16, in float32."""

    def weight(self, address: Any) -> Any:
        return self.code.broadcast(self.code.load(address, INT32))

    def multiply_add(self, weight: Any, address: Any, total: Any) -> Any:
        code = self.code
        activations = code.load(address, code.integers)
        for weights, numbers in zip(self._floats(weight), self._floats(activations), strict=True):
            total = code.multiply_add(weights, numbers, total)
        return total

    def _floats(self, words: Any) -> tuple[Any, Any]:
        """Return the first and the second numbers of words as floats."""
        code = self.code
        shift = ir.Constant(code.integers, [16] * code.lanes)
        mask = ir.Constant(code.integers, [-1 << 16] * code.lanes)
        first, second = code.builder.shl(words, shift), code.builder.and_(words, mask)
        return code.builder.bitcast(first, code.vector), code.builder.bitcast(second, code.vector)


class _Bfloat16Instruction(_Bfloat16Products):
    """The same by an instruction of AVX-512, which takes numbers below float32's smallest as 0."""

    def multiply_add(self, weight: Any, address: Any, total: Any) -> Any:
        code = self.code
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * code.lanes}"
        arguments = [code.vector, code.integers, code.integers]
        function = code.intrinsic(name, code.vector, arguments)
        activations = code.load(address, code.integers)
        return code.builder.call(function, [total, activations, weight])


class _Int8Products(Products):
    """The sums of products of four integers, unsigned activations and signed weights."""

    def first(self, bias: Any, start: Any) -> Any:
        return self.code.broadcast(self.code.builder.trunc(start, INT32))

    def weight(self, address: Any) -> Any:
        return self.code.broadcast(self.code.load(address, INT32))

    def multiply_add(self, weight: Any, address: Any, total: Any) -> Any:
        code, builder = self.code, self.code.builder
        activations = code.load(address, code.integers)
        upper = ir.Constant(code.integers, [24] * code.lanes)
        for place in range(4):
            shift = ir.Constant(code.integers, [24 - 8 * place] * code.lanes)
            weights = builder.ashr(builder.shl(weight, shift), upper)
            numbers = builder.lshr(builder.shl(activations, shift), upper)
            total = builder.add(total, builder.mul(weights, numbers))
        return total

    def result(self, total: Any, scale: Any, bias: Any) -> Any:
        code = self.code
        sums = code.builder.sitofp(total, code.vector)
        return code.multiply_add(sums, code.broadcast(scale), code.broadcast(bias))


class _Int8Instruction(_Int8Products):
    """The same by an instruction of AVX-512."""

    def multiply_add(self, weight: Any, address: Any, total: Any) -> Any:
        code = self.code
        name = f"llvm.x86.avx512.vpdpbusd.{32 * code.lanes}"
        function = code.intrinsic(name, code.integers, [code.integers] * 3)
        activations = code.load(address, code.integers)
        return code.builder.call(function, [total, activations, weight])


_PRODUCTS: dict[Arithmetic, type[Products]] = {
    FLOAT32: Products,
    Arithmetic(2, native=False): _Bfloat16Products,
    Arithmetic(2, native=True): _Bfloat16Instruction,
    Arithmetic(4, native=False): _Int8Products,
    Arithmetic(4, native=True): _Int8Instruction,
}


def products_of(arithmetic: Arithmetic, code: Code) -> Products:
    """Return the instructions of an arithmetic."""
    return _PRODUCTS[arithmetic](code)
