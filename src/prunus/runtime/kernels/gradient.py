"""Kernels for training: the elements of a dense matrix at kept places, and their gradients."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange

from prunus.runtime.kernels.compiling import compiled
from prunus.runtime.kernels.matrix import read_weight
from prunus.runtime.kernels.records import GradientRecord
from prunus.runtime.kernels.tiles import LANES
from prunus.runtime.kernels.vectors import (
    count_nonzero,
    fill_zeros,
    float_at,
    index_at,
    int_at,
    record_reader,
    sampled_dots,
    store_float,
)

__all__ = ["gather_elements", "reorder_elements", "weight_gradient"]

_GROUP = 8
"""Elements whose gradients are computed at once.

Their sums stay in registers, with AVX-512; each vector of output gradients is loaded once for all.
"""

_read_gradient = record_reader(GradientRecord)


@functools.cache
def gather_elements(bits: int, parallel: bool) -> Any:
    """Return the kernel that reads the elements of a sparse matrix from a dense one.

    It also writes, for each thread, how many elements beside them are not zero. Its arguments:
    address of the :class:`GradientRecord`, and those of the dense matrix and of these numbers.

    Args:
        bits: Bits of an index.
        parallel: Whether threads share the work.
    """

    @compiled(bits)
    def part(record, dense, others, thread):
        matrix = _read_gradient(record)
        weight = read_weight(matrix.weight)
        columns, values = matrix.columns, weight.values
        nonzero = 0
        for row in range(int_at(weight.bounds, thread), int_at(weight.bounds, thread + 1)):
            source = dense + row * columns * 4
            # All of the row is read, which brings the elements into the first-level cache.
            nonzero += count_nonzero(LANES, source, columns)
            begin, end = int_at(weight.pointers, row), int_at(weight.pointers, row + 1)
            for k in range(begin, end):
                value = float_at(source, index_at(bits, weight.indices, k))
                store_float(values, k, value)
            nonzero -= count_nonzero(LANES, values + begin * 4, end - begin)
        store_float(others, thread, np.float32(nonzero))

    if not parallel:

        @compiled(bits)
        def whole(record, dense, others):
            part(record, dense, others, 0)

        return whole

    @compiled(bits, parallel=True)
    def shared(record, dense, others):
        for thread in prange(read_weight(_read_gradient(record).weight).threads):
            part(record, dense, others, thread)

    return shared


@functools.cache
def reorder_elements(parallel: bool) -> Any:
    """Return the kernel that writes y[k] = x[order[k]] for the elements of a sparse matrix.

    Its arguments: address of the :class:`GradientRecord` of the matrix that y belongs to, and those
    of ``order``, 32-bit integers, of x and of y.
    """

    @compiled()
    def part(record, order, x, y, thread):
        weight = read_weight(_read_gradient(record).weight)
        begin = int_at(weight.pointers, int_at(weight.bounds, thread))
        end = int_at(weight.pointers, int_at(weight.bounds, thread + 1))
        for k in range(begin, end):
            store_float(y, k, float_at(x, index_at(32, order, k)))

    if not parallel:

        @compiled()
        def whole(record, order, x, y):
            part(record, order, x, y, 0)

        return whole

    @compiled(parallel=True)
    def shared(record, order, x, y):
        for thread in prange(read_weight(_read_gradient(record).weight).threads):
            part(record, order, x, y, thread)

    return shared


@functools.cache
def weight_gradient(bits: int, parallel: bool) -> Any:
    """Return the kernel that computes the gradient of the elements of a sparse matrix.

    The gradient of the element in a row and a column is the dot product of the row's line of y and
    the column's line of x. It is written into a dense matrix, whose other elements become zero. Its
    arguments: address of the :class:`GradientRecord`, and those of x, of y, of one float for each
    element, and of the dense matrix. The Python arguments are those of :func:`gather_elements`.
    """

    @compiled(bits, _GROUP)
    def part(record, x, y, sums, dense, thread):
        gradient = _read_gradient(record)
        weight = read_weight(gradient.weight)
        indices, pointers = weight.indices, weight.pointers
        first, last = int_at(weight.bounds, thread), int_at(weight.bounds, thread + 1)
        begin, end = int_at(pointers, first), int_at(pointers, last)
        fill_zeros(sums + begin * 4, (end - begin) * 4)
        for offset in range(0, gradient.line, gradient.chunk):
            size = min(gradient.chunk, gradient.line - offset)
            at_x = x + offset
            for row in range(first, last):
                at_y = y + row * gradient.y_step + offset
                begin, end = int_at(pointers, row), int_at(pointers, row + 1)
                whole = end - (end - begin) % _GROUP
                for k in range(begin, whole, _GROUP):
                    sampled_dots(
                        LANES, _GROUP, bits, indices, k, at_x, gradient.x_step, at_y, size, sums
                    )
                for k in range(whole, end):
                    sampled_dots(
                        LANES, 1, bits, indices, k, at_x, gradient.x_step, at_y, size, sums
                    )
        columns = gradient.columns
        for row in range(first, last):
            target = dense + row * columns * 4
            fill_zeros(target, columns * 4)
            for k in range(int_at(pointers, row), int_at(pointers, row + 1)):
                store_float(target, index_at(bits, indices, k), float_at(sums, k))

    if not parallel:

        @compiled(bits, _GROUP)
        def whole(record, x, y, sums, dense):
            part(record, x, y, sums, dense, 0)

        return whole

    @compiled(bits, _GROUP, parallel=True)
    def shared(record, x, y, sums, dense):
        for thread in prange(read_weight(_read_gradient(record).weight).threads):
            part(record, x, y, sums, dense, thread)

    return shared
