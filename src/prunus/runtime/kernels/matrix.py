"""Kernels of products of a sparse matrix with tiles of a dense one, or with a vector."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange

from prunus.runtime.kernels.arithmetic import FLOAT32, Arithmetic
from prunus.runtime.kernels.compiling import compiled
from prunus.runtime.kernels.records import MatrixRecord, WeightRecord
from prunus.runtime.kernels.tiles import Tile
from prunus.runtime.kernels.vectors import (
    float_at,
    gather_dot,
    int_at,
    multiply_row,
    record_reader,
    store_float,
)

__all__ = ["dot", "read_matrix", "read_weight", "shared_dot", "shared_tile_rows", "tile_rows"]

_IN_FLIGHT = 8
"""Sums computed at once, so that none waits for its own last addition.

Derived, not measured: a fused multiply-add takes 4 cycles on recent processors, of which two start
per cycle, so that 8 independent sums keep them busy.
"""

_AHEAD = 8
"""Products between the prefetch of activations and their use, where the cache does not hold them.

A heuristic: with a shorter distance they arrive late, with a longer one more of them are prefetched
for rows to come and evicted before use.
"""

_DOT_UNROLL = 4
"""Products computed at once by the product with a vector.

A heuristic: fewer than ``_IN_FLIGHT``, because the rest of a row is computed one by one.
"""

read_weight = record_reader(WeightRecord)
read_matrix = record_reader(MatrixRecord)


@functools.cache
def tile_rows(
    tile: Tile, bits: int, prefetch: bool = False, arithmetic: Arithmetic = FLOAT32
) -> Any:
    """Return the kernel that multiplies rows of a sparse matrix by tiles of a dense one.

    Its arguments: address of the :class:`MatrixRecord`; first row and last row + 1; first tile and
    last tile + 1; addresses of x and y.

    Args:
        tile: Shape of a tile.
        bits: Bits of an index.
        prefetch: Whether to prefetch x, which pays where x is beyond the second-level cache and
            costs a little where it is not.
        arithmetic: How weights and activations are multiplied.
    """
    lanes, across, down = tile.lanes, tile.across, tile.down
    unroll, ahead = max(1, _IN_FLIGHT // tile.vectors), _AHEAD if prefetch else 0
    group, native = arithmetic.group, int(arithmetic.native)

    @compiled(tile, bits, prefetch, arithmetic)
    def rows(record, first, last, first_tile, last_tile, x, y):
        product = read_matrix(record)
        weight = read_weight(product.weight)
        floor = np.float32(0) if weight.relu else np.float32(-np.inf)
        furthest = int_at(weight.pointers, last) - 1
        for start in range(first, last, product.chunk):
            stop = min(start + product.chunk, last)
            for part in range(first_tile, last_tile):
                tile_x = x + int_at(product.tiles, 3 * part)
                tile_y = y + int_at(product.tiles, 3 * part + 1)
                tail = int_at(product.tiles, 3 * part + 2)
                for row in range(start, stop):
                    begin, end = int_at(weight.pointers, row), int_at(weight.pointers, row + 1)
                    start_sum, scale = 0, np.float32(1)
                    if group == 4:
                        start_sum = int_at(weight.starts, row)
                        scale = float_at(weight.scales, row)
                    multiply_row(
                        lanes, across, down, unroll, bits, ahead, group, native,
                        weight.values, weight.indices, begin, end, furthest,
                        tile_x, product.x_step, product.x_line,
                        tile_y + row * product.y_row, product.y_line,
                        tail, float_at(weight.bias, row), floor, start_sum, scale,
                    )  # fmt: skip

    return rows


@functools.cache
def shared_tile_rows(
    tile: Tile, bits: int, prefetch: bool = False, arithmetic: Arithmetic = FLOAT32
) -> Any:
    """Return the kernel that multiplies a sparse matrix by tiles of a dense one, with threads.

    Its arguments: addresses of the :class:`MatrixRecord`, of x and of y. The Python arguments are
    those of :func:`tile_rows`.
    """
    rows = tile_rows(tile, bits, prefetch, arithmetic)

    @compiled(tile, bits, prefetch, arithmetic, parallel=True)
    def shared(record, x, y):
        product = read_matrix(record)
        weight = read_weight(product.weight)
        count, by_tiles = product.tile_count, product.by_tiles
        threads, bounds = weight.threads, weight.bounds
        for thread in prange(threads):
            if by_tiles:
                last = int_at(bounds, threads)
                begin, end = thread * count // threads, (thread + 1) * count // threads
                rows(record, 0, last, begin, end, x, y)
            else:
                first, last = int_at(bounds, thread), int_at(bounds, thread + 1)
                rows(record, first, last, 0, count, x, y)

    return shared


@functools.cache
def dot(bits: int) -> Any:
    """Return the kernel that multiplies rows of a sparse matrix by a vector of contiguous floats.

    Its arguments: address of the :class:`WeightRecord`; first row and last row + 1; addresses of x
    and y.
    """

    @compiled(bits)
    def rows(record, first, last, x, y):
        weight = read_weight(record)
        floor = np.float32(0) if weight.relu else np.float32(-np.inf)
        for row in range(first, last):
            begin, end = int_at(weight.pointers, row), int_at(weight.pointers, row + 1)
            total = gather_dot(_DOT_UNROLL, bits, weight.values, weight.indices, begin, end, x)
            total += float_at(weight.bias, row)
            store_float(y, row, floor if total < floor else total)

    return rows


@functools.cache
def shared_dot(bits: int) -> Any:
    """Return the kernel that multiplies a sparse matrix by a vector, with threads.

    Its arguments: addresses of the :class:`WeightRecord`, of x and of y.
    """
    rows = dot(bits)

    @compiled(bits, parallel=True)
    def shared(record, x, y):
        weight = read_weight(record)
        threads, bounds = weight.threads, weight.bounds
        for thread in prange(threads):
            rows(record, int_at(bounds, thread), int_at(bounds, thread + 1), x, y)

    return shared
