"""The loops around the innermost ones: over rows, tiles, images and threads.

A kernel is compiled when it is first wanted, for one shape of tile, and kept on disk by Numba. All
arguments are whole numbers, addresses among them, because unpacking arrays costs a small layer more
than its arithmetic; nothing here checks a bound. The layers that call it do.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit, prange

from prunus.runtime import vectors
from prunus.runtime.vectors import (
    float_at,
    gather_dot,
    largest,
    number_at,
    put_float,
    sum_of_rows,
    transposed,
)

__all__ = ["Pool", "Tile", "convolve", "dot", "matrix", "pack", "unpack", "with_threads"]

_IN_FLIGHT = 8
"""Sums that are worked on at a time, so that none waits for its own last addition."""

_AHEAD = 8
"""Products between asking for activations and reading them, where they are far away."""

_LANES = 16
_parallel = threading.Lock()

_SOURCES = hashlib.sha256(
    b"".join(Path(str(module)).read_bytes() for module in (__file__, vectors.__file__))
).hexdigest()[:12]


def _compiled(*shape: Any, parallel: bool = False) -> Callable[[Any], Any]:
    """Compile a function, and keep the result on disk under a name that is of this kernel alone.

    Numba keeps all that a function was compiled to beside one list of it, which two processes may
    write at once, and which a killed one may leave behind without what it promises: what is then
    found under one shape is code for another, or of an older release. It would run, and be wrong.

    Args:
        shape: What the function takes from around it, but for the shapes of what it calls.
        parallel: Whether it has loops for several threads.
    """
    made_for = "_".join(re.sub(r"\W+", "_", repr(each)) for each in (*shape, parallel))

    def decorate(function: Any) -> Any:
        own = re.sub(r"\W+", "_", function.__qualname__)
        function.__qualname__ = f"{own}_{made_for}_{_SOURCES}"
        made = njit(nogil=True, cache=True, parallel=parallel)(function)
        # The name says all that there is to tell. Numba's own key holds the functions that this one
        # calls, pickled, which differ from process to process: nothing would be found again.
        made._cache._index_key = lambda sig, codegen: (sig, codegen.magic_tuple())
        return made

    return decorate


@dataclass(frozen=True)
class Tile:
    """The part of an output row that is held in registers.

    Attributes:
        lanes: Floats in a vector.
        across: Vectors beside each other.
        down: Lines of them.
    """

    lanes: int
    across: int
    down: int = 1

    @property
    def width(self) -> int:
        """Floats in a line."""
        return self.lanes * self.across

    @property
    def vectors(self) -> int:
        """Vectors in all."""
        return self.across * self.down


@dataclass(frozen=True)
class Pool:
    """Max pooling of an image that a convolution has computed.

    Attributes:
        height: Lines of a window.
        width: Floats in a line of it.
        down: Lines from window to window.
        across: Floats from window to window, 1 or 2.
        lanes: How many windows beside each other are worked on at a time.
    """

    height: int
    width: int
    down: int
    across: int
    lanes: int


def with_threads(call: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Call a kernel that shares its work among threads.

    One at a time, because not every threading layer of Numba can be entered twice.
    """
    with _parallel:
        if numba.get_num_threads() != threads:
            numba.set_num_threads(threads)
        call(threads, *arguments)


@functools.cache
def _rows(tile: Tile, bits: int, far: bool = False) -> Any:
    lanes, across, down = tile.lanes, tile.across, tile.down
    unroll, ahead = max(1, _IN_FLIGHT // tile.vectors), _AHEAD if far else 0

    @_compiled(tile, bits, far)
    def rows(
        values, index, pointers, bias, first, last, chunk, x, scale, x_down, y, y_row, y_down,
        floor, tiles, count,
    ):  # fmt: skip
        most = number_at(pointers, last) - 1
        for start in range(first, last, chunk):
            for part in range(count):
                at_x = x + np.uint64(number_at(tiles, 3 * part))
                at_y = y + np.uint64(number_at(tiles, 3 * part + 1))
                tail = number_at(tiles, 3 * part + 2)
                for row in range(start, min(start + chunk, last)):
                    sum_of_rows(
                        lanes, across, down, unroll, bits, ahead,
                        values, index, number_at(pointers, row), number_at(pointers, row + 1),
                        most, at_x, scale, x_down, at_y + np.uint64(row * y_row), y_down,
                        tail, float_at(bias, row), floor,
                    )  # fmt: skip

    return rows


@functools.cache
def matrix(tile: Tile, bits: int, parallel: bool, far: bool = False) -> Any:
    """Return the kernel that multiplies a sparse matrix by tiles of a dense one.

    With ``far`` it asks for what it reads of the dense one some time before, which pays where that
    lies beyond the second-level cache, and costs a little where it does not.

    Its arguments: values, index, pointers (a row's first element, one row more than there are) and
    bias of the sparse matrix, all addresses; for one thread the first row and the last + 1, for
    several the address of ``threads + 1`` bounds; rows to work on before the next tile has its
    turn; x; the bytes by which an index advances in x; the bytes between lines in x;
    y; those between rows and lines in y; the least output; the address of the tiles, of each the
    bytes from x and from y at which it starts, and from there to the last vector of a line; their
    number. For several threads their number comes
    first of all, and whether they share out the tiles in place of the rows.
    """
    rows = _rows(tile, bits, far)
    if not parallel:
        return rows

    @_compiled(tile, bits, far, parallel=True)
    def shared(
        threads, by_tiles, values, index, pointers, bias, bounds, chunk, x, scale, x_down, y, y_row,
        y_down, floor, tiles, count,
    ):  # fmt: skip
        last_row = number_at(bounds, threads)
        for thread in prange(threads):
            if by_tiles:
                begin, end = thread * count // threads, (thread + 1) * count // threads
                rows(
                    values, index, pointers, bias, 0, last_row, chunk, x, scale, x_down,
                    y, y_row, y_down, floor, tiles + np.uint64(24 * begin), end - begin,
                )  # fmt: skip
            else:
                first, last = number_at(bounds, thread), number_at(bounds, thread + 1)
                rows(
                    values, index, pointers, bias, first, last, chunk, x, scale, x_down,
                    y, y_row, y_down, floor, tiles, count,
                )  # fmt: skip

    return shared


@functools.cache
def dot(bits: int, parallel: bool) -> Any:
    """Return the kernel that multiplies a sparse matrix by one vector of contiguous floats."""

    @_compiled(bits)
    def rows(values, index, pointers, bias, first, last, x, y, floor):
        for row in range(first, last):
            begin, end = number_at(pointers, row), number_at(pointers, row + 1)
            total = gather_dot(4, bits, values, index, begin, end, x) + float_at(bias, row)
            put_float(y, row, floor if total < floor else total)

    if not parallel:
        return rows

    @_compiled(bits, parallel=True)
    def shared(threads, values, index, pointers, bias, bounds, x, y, floor):
        for thread in prange(threads):
            first, last = number_at(bounds, thread), number_at(bounds, thread + 1)
            rows(values, index, pointers, bias, first, last, x, y, floor)

    return shared


@_compiled()
def _transpose(x, x_row, rows, columns, y, y_row):
    """Write y[column, row] = x[row, column], of contiguous columns; row steps in bytes."""
    whole_rows, whole_columns = rows - rows % _LANES, columns - columns % _LANES
    for row in range(0, whole_rows, _LANES):
        for column in range(0, whole_columns, _LANES):
            transposed(
                _LANES,
                x + np.uint64(row * x_row + column * 4),
                x_row,
                y + np.uint64(column * y_row + row * 4),
                y_row,
            )
        for i in range(row, row + _LANES):
            for column in range(whole_columns, columns):
                value = float_at(x + np.uint64(i * x_row), column)
                put_float(y + np.uint64(column * y_row), i, value)
    for row in range(whole_rows, rows):
        for column in range(columns):
            value = float_at(x + np.uint64(row * x_row), column)
            put_float(y + np.uint64(column * y_row), row, value)


@_compiled()
def _pack_part(x, x_item, x_feature, items, features, y, width, start, step):
    """Write the items from ``start`` on, ``step`` at most, to the panel that they belong to."""
    count, place = min(step, items - start), start % width
    at = x + np.uint64(start * x_item)
    panel = y + np.uint64((start - place) * features * 4 + place * 4)
    if x_feature == 4:
        _transpose(at, x_item, count, features, panel, width * 4)
    else:
        for feature in range(features):
            source = at + np.uint64(feature * x_feature)
            line = panel + np.uint64(feature * width * 4)
            for item in range(count):
                put_float(line, item, float_at(source, item))
    if start + count == items:
        for feature in range(features):
            for item in range(place + count, width):
                put_float(panel, feature * width + item - place, np.float32(0))


@functools.cache
def pack(parallel: bool) -> Any:
    """Return the kernel that writes panels of ``width`` items each: y[panel, feature, item].

    One of the two steps of x, given in bytes, must be that of contiguous floats. What is left of
    the last panel holds zeros. In parallel the first argument is the number of threads.
    """
    if not parallel:

        @_compiled()
        def panels(x, x_item, x_feature, items, features, y, width):
            for start in range(0, items, width):
                _pack_part(x, x_item, x_feature, items, features, y, width, start, width)

        return panels

    @_compiled(parallel=True)
    def shared(threads, x, x_item, x_feature, items, features, y, width):
        # Parts of a panel too, where they are transposed; else a panel's lines are copied whole.
        step = min(width, _LANES) if x_feature == 4 else width
        for part in prange((items + step - 1) // step):
            _pack_part(x, x_item, x_feature, items, features, y, width, part * step, step)

    return shared


@functools.cache
def unpack(parallel: bool) -> Any:
    """Return the kernel that writes y[item, feature] = x[feature, item].

    Both are contiguous but for the step of x's lines. In parallel the first argument is the number
    of threads.
    """
    if not parallel:

        @_compiled()
        def whole(x, x_feature, items, features, y):
            _transpose(x, x_feature, features, items, y, features * 4)

        return whole

    @_compiled(parallel=True)
    def shared(threads, x, x_feature, items, features, y):
        for part in prange((items + _LANES - 1) // _LANES):
            start = part * _LANES
            count = min(_LANES, items - start)
            at = y + np.uint64(start * features * 4)
            _transpose(x + np.uint64(start * 4), x_feature, features, count, at, features * 4)

    return shared


@_compiled()
def _spread(x, x_channel, x_line, channels, height, width, top, left, stride, planes, line, plane):
    """Copy an image onto planes with a border, one for each remainder of a place by the stride."""
    phase = plane // (stride * stride)
    for channel in range(channels):
        start = planes + np.uint64(channel * plane * 4)
        for row in range(height):
            source = x + np.uint64(channel * x_channel + row * x_line)
            place = row + top
            if stride == 1:
                target = start + np.uint64((place * line + left) * 4)
                for column in range(width):
                    put_float(target, column, float_at(source, column))
            else:
                at = (place % stride) * stride * phase + (place // stride) * line
                for column in range(width):
                    to = column + left
                    put_float(
                        start,
                        at + (to % stride) * phase + to // stride,
                        float_at(source, column),
                    )


@functools.cache
def _pooling(pool: Pool | None) -> Any:
    """Return the kernel that pools planes [first, last) of an image; that of None does nothing."""
    if pool is None:

        @_compiled(pool)
        def nothing(x, x_plane, x_line, first, last, tall, wide, y):
            pass

        return nothing
    lanes, height, width, down, across = (
        pool.lanes, pool.height, pool.width, pool.down, pool.across,
    )  # fmt: skip

    @_compiled(pool)
    def planes(x, x_plane, x_line, first, last, tall, wide, y):
        for plane in range(first, last):
            for row in range(tall):
                source = x + np.uint64(plane * x_plane + row * down * x_line)
                target = y + np.uint64((plane * tall + row) * wide * 4)
                for start in range(0, wide, lanes):
                    column = min(start, wide - lanes)
                    largest(
                        lanes, height, width, across,
                        source + np.uint64(column * across * 4), x_line,
                        target + np.uint64(column * 4),
                    )  # fmt: skip

    return planes


@functools.cache
def convolve(tile: Tile, bits: int, parallel: bool, pool: Pool | None = None) -> Any:
    """Return the kernel of convolutions: of images copied onto planes, or as they are.

    In parallel each thread works on images of its own if there are enough of them, and otherwise
    on rows of its own. With pooling, each image is first computed at y, the same place for all
    images of a thread, and then pooled to where it belongs.
    """
    rows, pooled = _rows(tile, bits), _pooling(pool)

    @_compiled(tile, bits, pool)
    def images(
        start, stop, values, index, pointers, bias, first, last, chunk, x, x_image, x_channel,
        x_line, channels, height, width, top, left, stride, planes, line, plane, y, y_image, y_row,
        y_line, floor, tiles, count, pool_line, tall, wide, pools, pools_image,
    ):  # fmt: skip
        for image in range(start, stop):
            source = x + np.uint64(image * x_image)
            if planes:
                _spread(
                    source, x_channel, x_line, channels, height, width, top, left, stride,
                    planes, line, plane,
                )  # fmt: skip
                source = planes
            rows(
                values, index, pointers, bias, first, last, chunk, source, 4, line * 4,
                y + np.uint64(image * y_image), y_row, y_line, floor, tiles, count,
            )  # fmt: skip
            at = pools + np.uint64(image * pools_image)
            pooled(y, y_row, pool_line, first, last, tall, wide, at)

    if not parallel:
        return images

    @_compiled(tile, bits, pool, parallel=True)
    def shared(
        threads, total, values, index, pointers, bias, bounds, chunk, x, x_image, x_channel,
        x_line, channels, height, width, top, left, stride, planes, line, plane, apart, y, y_image,
        y_row, y_line, floor, tiles, count, pool_line, tall, wide, pools, pools_image, y_apart,
    ):  # fmt: skip
        if total >= threads:
            all_rows = number_at(bounds, threads)
            for thread in prange(threads):
                own = planes + np.uint64(thread * apart * min(planes, 1))  # 0 stays 0
                images(
                    thread * total // threads, (thread + 1) * total // threads,
                    values, index, pointers, bias, 0, all_rows, chunk, x, x_image, x_channel,
                    x_line, channels, height, width, top, left, stride, own, line, plane,
                    y + np.uint64(thread * y_apart), y_image, y_row, y_line, floor, tiles,
                    count, pool_line, tall, wide, pools, pools_image,
                )  # fmt: skip
        else:
            for image in range(total):
                source = x + np.uint64(image * x_image)
                if planes:
                    for channel in prange(channels):
                        _spread(
                            source + np.uint64(channel * x_channel), x_channel, x_line, 1, height,
                            width, top, left, stride,
                            planes + np.uint64(channel * plane * 4), line, plane,
                        )  # fmt: skip
                    source = planes
                at = pools + np.uint64(image * pools_image)
                for thread in prange(threads):
                    first, last = number_at(bounds, thread), number_at(bounds, thread + 1)
                    rows(
                        values, index, pointers, bias, first, last, chunk, source, 4, line * 4,
                        y + np.uint64(image * y_image), y_row, y_line, floor, tiles, count,
                    )  # fmt: skip
                    pooled(y, y_row, pool_line, first, last, tall, wide, at)

    return shared
