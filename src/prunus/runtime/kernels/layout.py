"""Kernels that copy activations from one layout in memory into another."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange

from prunus.runtime.kernels.compiling import compiled
from prunus.runtime.kernels.records import PackRecord, UnpackRecord
from prunus.runtime.kernels.tiles import LANES
from prunus.runtime.kernels.vectors import (
    float_at,
    record_reader,
    store_float,
    transpose_square,
)

__all__ = ["pack", "unpack"]

_read_pack = record_reader(PackRecord)
_read_unpack = record_reader(UnpackRecord)


@compiled()
def _transpose(x, x_row, rows, columns, y, y_row):
    """Write y[column, row] = x[row, column], with contiguous columns; row steps in bytes."""
    # Squares of LANES lines and columns are transposed in registers.
    whole_rows, whole_columns = rows - rows % LANES, columns - columns % LANES
    for row in range(0, whole_rows, LANES):
        for column in range(0, whole_columns, LANES):
            source = x + row * x_row + column * 4
            transpose_square(LANES, source, x_row, y + column * y_row + row * 4, y_row)
        for i in range(row, row + LANES):
            for column in range(whole_columns, columns):
                store_float(y + column * y_row, i, float_at(x + i * x_row, column))
    for row in range(whole_rows, rows):
        for column in range(columns):
            store_float(y + column * y_row, row, float_at(x + row * x_row, column))


@compiled()
def _pack_part(record, x, y, start, step):
    """Write the items from ``start`` on, at most ``step``, into the panel that they belong to."""
    pack = _read_pack(record)
    items, features, width = pack.items, pack.features, pack.width
    count, place = min(step, items - start), start % width
    source = x + start * pack.x_item
    panel = y + (start - place) * features * 4 + place * 4
    if pack.x_feature == 4:
        _transpose(source, pack.x_item, count, features, panel, width * 4)
    else:
        for feature in range(features):
            for item in range(count):
                value = float_at(source + feature * pack.x_feature, item)
                store_float(panel + feature * width * 4, item, value)
    if start + count == items:
        for feature in range(features):
            for item in range(place + count, width):
                store_float(panel, feature * width + item - place, np.float32(0))


@functools.cache
def pack(parallel: bool) -> Any:
    """Return the kernel that writes panels of ``width`` items each: y[panel, feature, item].

    The rest of the last panel is filled with zeros. Its arguments: addresses of the
    :class:`PackRecord`, of x and of y.
    """
    if not parallel:

        @compiled()
        def panels(record, x, y):
            pack = _read_pack(record)
            for start in range(0, pack.items, pack.width):
                _pack_part(record, x, y, start, pack.width)

        return panels

    @compiled(parallel=True)
    def shared(record, x, y):
        pack = _read_pack(record)
        # A transposed panel may be divided further; otherwise its lines are copied whole.
        step = min(pack.width, LANES) if pack.x_feature == 4 else pack.width
        for part in prange((pack.items + step - 1) // step):
            _pack_part(record, x, y, part * step, step)

    return shared


@functools.cache
def unpack(parallel: bool) -> Any:
    """Return the kernel that writes y[item, feature] = x[feature, item].

    Both are contiguous except for the step of x from feature to feature. Its arguments: addresses
    of the :class:`UnpackRecord`, of x and of y.
    """
    if not parallel:

        @compiled()
        def whole(record, x, y):
            unpack = _read_unpack(record)
            features = unpack.features
            _transpose(x, unpack.x_feature, features, unpack.items, y, features * 4)

        return whole

    @compiled(parallel=True)
    def shared(record, x, y):
        unpack = _read_unpack(record)
        items, features, x_feature = unpack.items, unpack.features, unpack.x_feature
        for part in prange((items + LANES - 1) // LANES):
            start = part * LANES
            count = min(LANES, items - start)
            target = y + start * features * 4
            _transpose(x + start * 4, x_feature, features, count, target, features * 4)

    return shared
