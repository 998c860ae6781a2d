"""Kernels that copy activations from one layout in memory into another."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange

from prunus.runtime.kernels.compiling import compiled
from prunus.runtime.kernels.conversion import (
    bits_of_float,
    pack_lines,
    pack_square,
    store_word,
)
from prunus.runtime.kernels.records import PackRecord, UnpackRecord
from prunus.runtime.kernels.tiles import LANES
from prunus.runtime.kernels.vectors import float_at, record_reader

__all__ = ["pack", "unpack"]

_read_pack = record_reader(PackRecord)
_read_unpack = record_reader(UnpackRecord)


@functools.cache
def _word(group: int) -> Any:
    """Return the function that computes a word from at most ``group`` floats, ``step`` apart."""
    bits = 32 // group

    @compiled(group)
    def word(x, step, count, factor, zero):
        numbers = 0
        for i in range(min(group, count)):
            numbers |= bits_of_float(group, x + i * step, factor, zero) << (i * bits)
        return numbers

    return word


@functools.cache
def _has_nan(group: int) -> Any:
    """Return the function that counts the NaN among floats, of which int8 alone would hide one."""

    @compiled(group)
    def count(x, step, floats):
        found = 0
        if group == 4:
            for i in range(floats):
                value = float_at(x + i * step, 0)
                found += value != value
        return found

    return count


@functools.cache
def _transposition(group: int) -> Any:
    """Return the function that writes words of ``group`` columns: y[word, row].

    x[row, column] are contiguous floats, and so are the words of a line of y; row steps are in
    bytes. It returns a number above 0 if int8 would hide a NaN.
    """
    word_of, count_nan = _word(group), _has_nan(group)

    @compiled(group)
    def one_by_one(x, x_row, start, stop, first, columns, y, y_row, factor, zero):
        """Write the words from ``first`` on of rows from ``start`` to ``stop``."""
        words, found = (columns + group - 1) // group, 0
        for row in range(start, stop if first < words else start):
            line = x + row * x_row
            for word in range(first, words):
                source, count = line + word * group * 4, columns - word * group
                store_word(y + word * y_row, row, word_of(source, 4, count, factor, zero))
            found |= count_nan(line + first * group * 4, 4, columns - first * group)
        return found

    @compiled(group)
    def transpose(x, x_row, rows, columns, y, y_row, factor, zero):
        # Squares of LANES lines and words are transposed in registers.
        whole_rows, whole_words = rows - rows % LANES, columns // (group * LANES) * LANES
        found = 0
        for row in range(0, whole_rows, LANES):
            for word in range(0, whole_words, LANES):
                source, target = x + row * x_row + word * group * 4, y + word * y_row + row * 4
                found |= pack_square(LANES, group, source, x_row, target, y_row, factor, zero)
            end = row + LANES
            found |= one_by_one(x, x_row, row, end, whole_words, columns, y, y_row, factor, zero)
        found |= one_by_one(x, x_row, whole_rows, rows, 0, columns, y, y_row, factor, zero)
        return found

    return transpose


@functools.cache
def _part(group: int) -> Any:
    """Return the function that writes ``step`` items, from ``start`` on, into their panel."""
    transpose, word_of, count_nan = _transposition(group), _word(group), _has_nan(group)

    @compiled(group)
    def part(record, x, y, start, step):
        pack = _read_pack(record)
        items, features, width = pack.items, pack.features, pack.width
        words = (features + group - 1) // group
        factor, zero = float_at(pack.rounding, 0), float_at(pack.rounding, 1)
        count, place = min(step, items - start), start % width
        source = x + start * pack.x_item
        panel = y + (start - place) * words * 4 + place * 4
        found = 0
        if pack.x_feature == 4:
            found = transpose(source, pack.x_item, count, features, panel, width * 4, factor, zero)
        else:
            step_of_x = pack.x_feature
            for word in range(words):
                line, target = source + word * group * step_of_x, panel + word * width * 4
                present = min(group, features - word * group)
                whole = count - count % LANES if present == group else 0
                for item in range(0, whole, LANES):
                    at_x, at_y = line + item * 4, target + item * 4
                    found |= pack_lines(LANES, group, at_x, step_of_x, at_y, factor, zero)
                for item in range(whole, count):
                    bits = word_of(line + item * 4, step_of_x, present, factor, zero)
                    store_word(target, item, bits)
                    found |= count_nan(line + item * 4, step_of_x, present)
        if start + count == items:
            for word in range(words):
                for item in range(place + count, width):
                    store_word(panel, word * width + item - place, 0)
        return found

    return part


@functools.cache
def pack(group: int, parallel: bool) -> Any:
    """Return the kernel that writes panels of ``width`` items each: y[panel, word, item].

    The rest of the last panel is filled with zeros. Its arguments: addresses of the
    :class:`PackRecord`, of x and of y. It returns a number above 0 if int8 would hide a NaN.

    Args:
        group: Features in a word: 1 as float32, 2 in bfloat16, 4 in int8.
        parallel: Whether threads share the work.
    """
    part = _part(group)
    if not parallel:

        @compiled(group)
        def panels(record, x, y):
            pack = _read_pack(record)
            found = 0
            for start in range(0, pack.items, pack.width):
                found |= part(record, x, y, start, pack.width)
            return found

        return panels

    @compiled(group, parallel=True)
    def shared(record, x, y):
        pack = _read_pack(record)
        # A transposed panel may be divided further; otherwise its lines are copied whole.
        step = min(pack.width, LANES) if pack.x_feature == 4 else pack.width
        found = 0
        for i in prange((pack.items + step - 1) // step):
            found += part(record, x, y, i * step, step) != 0
        return found

    return shared


@functools.cache
def unpack(parallel: bool) -> Any:
    """Return the kernel that writes y[item, feature] = x[feature, item].

    Both are contiguous except for the step of x from feature to feature. Its arguments: addresses
    of the :class:`UnpackRecord`, of x and of y.
    """
    transpose, none = _transposition(1), np.float32(0)
    if not parallel:

        @compiled()
        def whole(record, x, y):
            unpack = _read_unpack(record)
            features, x_feature = unpack.features, unpack.x_feature
            transpose(x, x_feature, features, unpack.items, y, features * 4, none, none)

        return whole

    @compiled(parallel=True)
    def shared(record, x, y):
        unpack = _read_unpack(record)
        items, features, x_feature = unpack.items, unpack.features, unpack.x_feature
        for part in prange((items + LANES - 1) // LANES):
            start = part * LANES
            count = min(LANES, items - start)
            target = y + start * features * 4
            transpose(x + start * 4, x_feature, features, count, target, features * 4, none, none)

    return shared
