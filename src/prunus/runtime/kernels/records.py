"""Records: the arguments of kernels, as integers in memory that a kernel reads by field name.

A call passes the address of a record, which a plan fills once, because unpacking many arguments
takes longer than the arithmetic of a small layer. Addresses and steps are in bytes, unless a field
states otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "GradientRecord",
    "ImageRecord",
    "MatrixRecord",
    "PackRecord",
    "Record",
    "UnpackRecord",
    "WeightRecord",
]


class WeightRecord(NamedTuple):
    """A sparse matrix, and how its rows are divided among threads.

    Attributes:
        values: Address of the non-zero elements, row by row: floats, or words of several elements.
        indices: Address of the index of each element or word.
        pointers: Address of the number of the first one of each row; one entry more than rows.
        bias: Address of the bias of each row.
        bounds: Address of the first row of each thread; one entry more than threads.
        threads: Number of threads.
        relu: 1 to apply a ReLU to the outputs, else 0.
        starts: Address of the 64-bit integer that each row's sum begins with, in int8.
        scales: Address of the factor of each row's sum, in int8.
    """

    values: int
    indices: int
    pointers: int
    bias: int
    bounds: int
    threads: int
    relu: int
    starts: int = 0
    scales: int = 0


class MatrixRecord(NamedTuple):
    """The product of a sparse matrix and a dense one, which is divided into tiles.

    Attributes:
        weight: Address of the :class:`WeightRecord`.
        chunk: Rows to compute before the next tile.
        by_tiles: 1 to divide the tiles among the threads, 0 to divide the rows.
        x_step: Step in x from index to index.
        x_line: Step in x from line to line of a tile.
        y_row: Step in y from row to row.
        y_line: Step in y from line to line of a tile.
        tiles: Address of the table of tiles. For each tile: offset in x, offset in y, and offset of
            the last vector of a line from the start of the line.
        tile_count: Number of tiles.
    """

    weight: int
    chunk: int
    by_tiles: int
    x_step: int
    x_line: int
    y_row: int
    y_line: int
    tiles: int
    tile_count: int


class ImageRecord(NamedTuple):
    """A convolution of images, with an optional max pooling.

    Attributes:
        matrix: Address of the :class:`MatrixRecord` of one image.
        images: Number of images.
        x_image: Step in x from image to image.
        x_channel: Step in x from channel to channel.
        x_line: Step in x from line to line.
        channels: Channels of an image.
        height: Lines of a channel.
        width: Floats of a line.
        top: Lines of padding above a channel.
        left: Floats of padding before a line.
        stride_down: Stride of the convolution from line to line.
        stride_along: Stride of the convolution within a line.
        line: Floats from line to line of a plane.
        plane: Floats from channel to channel of the planes.
        planes_apart: Step from the planes of a thread to those of the next one.
        y_image: Step in y from image to image; 0 if each image is pooled before the next one.
        y_apart: Step in y from thread to thread where images are pooled.
        pool_line: Step in y from line to line, as the pooling reads them.
        pooled_height: Lines of a pooled channel.
        pooled_width: Floats of a pooled line.
        pooled_image: Step in the pooled output from image to image.
    """

    matrix: int
    images: int
    x_image: int
    x_channel: int
    x_line: int
    channels: int
    height: int
    width: int
    top: int
    left: int
    stride_down: int
    stride_along: int
    line: int
    plane: int
    planes_apart: int
    y_image: int
    y_apart: int
    pool_line: int
    pooled_height: int
    pooled_width: int
    pooled_image: int


class PackRecord(NamedTuple):
    """A copy of items into panels.

    Attributes:
        x_item: Step in x from item to item.
        x_feature: Step in x from feature to feature; this or the other step must be 4.
        items: Number of items.
        features: Floats of an item.
        width: Items of a panel.
        rounding: Address of two floats: the factor by which numbers are multiplied before they are
            rounded to int8, and the number that is then added.
    """

    x_item: int
    x_feature: int
    items: int
    features: int
    width: int
    rounding: int


class UnpackRecord(NamedTuple):
    """A copy of a matrix stored feature by feature into one stored item by item.

    Attributes:
        x_feature: Step in x from feature to feature.
        items: Number of items.
        features: Floats of an item.
    """

    x_feature: int
    items: int
    features: int


class GradientRecord(NamedTuple):
    """The gradient of the elements of a sparse matrix.

    Attributes:
        weight: Address of the :class:`WeightRecord`.
        columns: Columns of the matrix.
        x_step: Step in x, the inputs of the product, from column to column of the matrix.
        y_step: Step in y, the gradients of its outputs, from row to row.
        line: Bytes of a line of x or y.
        chunk: Bytes of a line that are read before the next row.
    """

    weight: int
    columns: int
    x_step: int
    y_step: int
    line: int
    chunk: int


class Record:
    """A record in memory.

    Args:
        fields: The values of its fields.
        owners: The objects whose addresses are among them, which live as long as the record.

    Attributes:
        address: Where the record is stored.

    Example:
        >>> record = Record(UnpackRecord(x_feature=64, items=9, features=2))
        >>> record.address % 8
        0
    """

    def __init__(
        self,
        fields: WeightRecord
        | MatrixRecord
        | ImageRecord
        | PackRecord
        | UnpackRecord
        | GradientRecord,
        *owners: object,
    ) -> None:
        self._numbers = np.array(fields, dtype=np.int64)
        self._owners = owners
        self.address = int(self._numbers.ctypes.data)
