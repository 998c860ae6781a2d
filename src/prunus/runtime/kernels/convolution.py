"""Kernels of sparse convolutions."""

from __future__ import annotations

import functools
from typing import Any

from numba import prange

from prunus.runtime.kernels.compiling import compiled
from prunus.runtime.kernels.matrix import read_matrix, read_weight, tile_rows
from prunus.runtime.kernels.records import ImageRecord
from prunus.runtime.kernels.tiles import Pool, Tile
from prunus.runtime.kernels.vectors import (
    float_at,
    int_at,
    maximum_of_windows,
    record_reader,
    store_float,
)

__all__ = ["convolve", "shared_convolve"]

_read_image = record_reader(ImageRecord)


@compiled()
def _copy_channels(record, x, planes, first, last):
    """Copy channels [first, last) of an image onto planes with a border.

    With strides, a plane is divided into one part for each remainder of a row and a column by them.
    """
    image = _read_image(record)
    down, along, line = image.stride_down, image.stride_along, image.line
    phase = image.plane // (down * along)
    for channel in range(first, last):
        start = planes + channel * image.plane * 4
        for row in range(image.height):
            source = x + channel * image.x_channel + row * image.x_line
            place = row + image.top
            if down == 1 and along == 1:
                target = start + (place * line + image.left) * 4
                for column in range(image.width):
                    store_float(target, column, float_at(source, column))
            else:
                offset = (place % down) * along * phase + (place // down) * line
                for column in range(image.width):
                    to = column + image.left
                    place_in_line = (to % along) * phase + to // along
                    store_float(start, offset + place_in_line, float_at(source, column))


@functools.cache
def _pooling(pool: Pool | None) -> Any:
    """Return the function that pools channels [first, last) of an image; without pool, it is empty.

    Its arguments: address of the :class:`ImageRecord`; the image, with its step from channel to
    channel; the first channel and the last channel + 1; the pooled image.
    """
    if pool is None:

        @compiled(pool)
        def no_pooling(record, x, x_channel, first, last, y):
            pass

        return no_pooling
    lanes, height, width, down, across = (
        pool.lanes, pool.height, pool.width, pool.down, pool.across,
    )  # fmt: skip

    @compiled(pool)
    def pool_channels(record, x, x_channel, first, last, y):
        image = _read_image(record)
        tall, wide, x_line = image.pooled_height, image.pooled_width, image.pool_line
        for channel in range(first, last):
            for row in range(tall):
                source = x + channel * x_channel + row * down * x_line
                target = y + (channel * tall + row) * wide * 4
                for start in range(0, wide, lanes):
                    column = min(start, wide - lanes)
                    maximum_of_windows(
                        lanes, height, width, across,
                        source + column * across * 4, x_line, target + column * 4,
                    )  # fmt: skip

    return pool_channels


@functools.cache
def convolve(tile: Tile, bits: int, pool: Pool | None = None) -> Any:
    """Return the kernel that computes a convolution of images.

    Its arguments: address of the :class:`ImageRecord`; first image and last image + 1; addresses of
    x; of the planes onto which each image is copied first, 0 to read it where it is; of y; of the
    pooled output. With pooling, each image is computed at y and then pooled into the output.

    Args:
        tile: Shape of a tile.
        bits: Bits of an index.
        pool: The pooling, or None.
    """
    rows, pooled = tile_rows(tile, bits), _pooling(pool)

    @compiled(tile, bits, pool)
    def images(record, start, stop, x, planes, y, pools):
        image = _read_image(record)
        product = read_matrix(image.matrix)
        weight = read_weight(product.weight)
        last = int_at(weight.bounds, weight.threads)
        for i in range(start, stop):
            source = x + i * image.x_image
            if planes:
                _copy_channels(record, source, planes, 0, image.channels)
                source = planes
            rows(image.matrix, 0, last, 0, product.tile_count, source, y + i * image.y_image)
            pooled(record, y, product.y_row, 0, last, pools + i * image.pooled_image)

    return images


@functools.cache
def shared_convolve(tile: Tile, bits: int, pool: Pool | None = None) -> Any:
    """Return the kernel that computes a convolution of images, with threads.

    Each thread computes its own images if there are at least as many as threads, and otherwise its
    own rows of each image. Its arguments: addresses of the :class:`ImageRecord`, of x, planes, y
    and the pooled output. The Python arguments are those of :func:`convolve`.
    """
    rows, pooled, images = tile_rows(tile, bits), _pooling(pool), convolve(tile, bits, pool)

    @compiled(tile, bits, pool, parallel=True)
    def shared(record, x, planes, y, pools):
        image = _read_image(record)
        product = read_matrix(image.matrix)
        weight = read_weight(product.weight)
        total, threads, bounds = image.images, weight.threads, weight.bounds
        if total >= threads:
            planes_apart, y_apart = image.planes_apart * min(planes, 1), image.y_apart  # 0 stays 0
            for thread in prange(threads):
                start, stop = thread * total // threads, (thread + 1) * total // threads
                own_planes, own_y = planes + thread * planes_apart, y + thread * y_apart
                images(record, start, stop, x, own_planes, own_y, pools)
        else:
            matrix, y_row, count = image.matrix, product.y_row, product.tile_count
            for i in range(total):
                source, target = x + i * image.x_image, y + i * image.y_image
                if planes:
                    for channel in prange(image.channels):
                        _copy_channels(record, source, planes, channel, channel + 1)
                    source = planes
                output = pools + i * image.pooled_image
                for thread in prange(threads):
                    first, last = int_at(bounds, thread), int_at(bounds, thread + 1)
                    rows(matrix, first, last, 0, count, source, target)
                    pooled(record, y, y_row, first, last, output)

    return shared
