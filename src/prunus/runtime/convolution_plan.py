"""Plans of sparse convolutions: the decisions for images of one shape and layout.

A plan makes three decisions, one after the other: the layout in which the kernel reads the images,
the tiles that it divides their outputs into, and how threads share the work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from prunus.errors import ArgumentError
from prunus.runtime.kernels.compiling import run_in_threads
from prunus.runtime.kernels.convolution import convolve, shared_convolve
from prunus.runtime.kernels.records import ImageRecord, MatrixRecord, Record
from prunus.runtime.kernels.tiles import LANES, Pool, Tile
from prunus.runtime.rows import SparseRows, as_index, from_index
from prunus.runtime.sparse_layer import CHUNK_BYTES, is_worth_sharing
from prunus.runtime.tiling import image_table, tile_cost, tile_for_image

__all__ = ["ConvolutionPlan", "Geometry", "Images", "Window", "plan_images"]

Pair = tuple[int, int]

_SLACK = 64
"""Floats after planes and unpooled images that a tile or a pooling may read, unused.

A tile of 4 floats reads up to 3 beyond a narrower line, and a pooling up to 16 beyond its last
window; 64 is more than either.
"""

_MIN_COLUMNS = 4
"""Columns of an output below which images are copied: the lanes of the narrowest vector."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The arguments of a convolution over two dimensions.

    Attributes:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        groups: Groups of channels.
        kernel_size: Height and width of the kernel.
        stride: Strides.
        dilation: Dilations.
        padding: Padding above and below, and left and right.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    def padded_size(self, height: int, width: int) -> Pair:
        """Return the height and width of an image with its padding."""
        return height + sum(self.padding[0]), width + sum(self.padding[1])

    def output_size(self, height: int, width: int) -> Pair:
        """Return the height and width of the output.

        Raises:
            ArgumentError: The image is smaller than the kernel.
        """
        tall, wide = self.padded_size(height, width)
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if tall < reach[0] or wide < reach[1]:
            raise ArgumentError(
                f"SparseConv: the kernel covers {reach[0]}×{reach[1]} pixels, but the input has "
                f"{tall}×{wide} with its padding"
            )
        return (tall - reach[0]) // self.stride[0] + 1, (wide - reach[1]) // self.stride[1] + 1


@dataclass(frozen=True, kw_only=True)
class Window:
    """A max pooling after the convolution.

    Attributes:
        size: Height and width of a window.
        stride: Lines and columns from window to window.
    """

    size: Pair
    stride: Pair


@dataclass(frozen=True, kw_only=True)
class Images:
    """The shape and layout of an input.

    Attributes:
        count: Number of images.
        height: Lines of an image.
        width: Floats of a line.
        image_step: Floats from image to image.
        channel_step: Floats from channel to channel.
        line_step: Floats from line to line.
    """

    count: int
    height: int
    width: int
    image_step: int
    channel_step: int
    line_step: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the kernel reads an image, and the output that it computes.

    Attributes:
        copied: Whether images are copied onto planes, with a border and divided by the strides.
        line: Floats from line to line of what the kernel reads.
        phase: Floats from part to part of a plane that is divided by strides.
        plane: Floats from channel to channel.
        output_size: Height and width of the output.
        computed_size: The same as the kernel computes it: one line if each pixel is independent.
    """

    copied: bool
    line: int
    phase: int
    plane: int
    output_size: Pair
    computed_size: Pair


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of an output channel.

    Attributes:
        tile: Shape of a tile.
        table: The table of tiles, see :mod:`prunus.runtime.tiling`.
        line: Floats from line to line of the output.
    """

    tile: Tile
    table: torch.Tensor
    line: int


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How threads share the work.

    Attributes:
        threads: Number of threads; 1 if it is not shared.
        by_images: How many threads compute images of their own, each with its own buffers; 1 if
            threads share each image.
    """

    threads: int
    by_images: int


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """The pooling that the kernel computes.

    Attributes:
        pool: Its windows.
        size: Height and width of the pooled output.
    """

    pool: Pool
    size: Pair


@dataclass(frozen=True, kw_only=True)
class ConvolutionPlan:
    """The plan for images of one shape and layout.

    Attributes:
        call: Calls the kernel, given the addresses of the input, of the planes, of the computed
            output and of the pooled output.
        record: The record that the call reads.
        stored_shape: Shape in which the kernel stores the output, lines perhaps longer than needed.
        columns: Floats of a stored line that belong to the output.
        output_shape: Shape of the output.
        pooled_shape: Shape of the pooled output; None if the kernel does not pool.
        planes_size: Floats of the planes; 0 if images are read where they are.
        unpooled_size: Floats of the images that are not pooled yet; 0 if the kernel does not pool.
        buffers: Buffers for planes and unpooled images that no call uses now; borders are zero.
    """

    call: Callable[..., None]
    record: Record
    stored_shape: tuple[int, int, int, int]
    columns: int
    output_shape: tuple[int, int, int, int]
    pooled_shape: tuple[int, int, int, int] | None
    planes_size: int
    unpooled_size: int
    buffers: list[torch.Tensor] = field(default_factory=list)

    def new_buffer(self) -> torch.Tensor:
        """Return a new buffer, filled with zeros."""
        return torch.zeros(self.planes_size + self.unpooled_size)


def plan_images(
    rows: SparseRows,
    geometry: Geometry,
    images: Images,
    *,
    window: Window | None,
    threads: int,
    relu: bool,
) -> ConvolutionPlan:
    """Return the plan for images of one shape and layout.

    Args:
        rows: The weight, as a matrix of output channels.
        geometry: The arguments of the convolution.
        images: Shape and layout of the input.
        window: A max pooling after the convolution, or None.
        threads: Number of threads available.
        relu: Whether to apply a ReLU to the outputs.
    """
    layout = choose_layout(geometry, images)
    tiling = choose_tiles(layout)
    sharing = choose_sharing(rows, tiling, images.count, threads)
    pooling = plan_pooling(window, layout.output_size)
    index = element_offsets(rows, geometry, layout)
    weight = rows.record(threads=sharing.threads, relu=relu, index=index)
    product = _product_record(weight, layout, tiling, rows.rows_within(CHUNK_BYTES))
    channels, (computed_height, columns) = geometry.out_channels, layout.computed_size
    planes = geometry.in_channels * layout.plane + _SLACK
    computed = channels * computed_height * tiling.line
    unpooled = computed + _SLACK if pooling else 0
    fields = _image_fields(product.address, geometry, images, layout, tiling, pooling)
    record = Record(
        fields._replace(planes_apart=4 * planes, y_apart=4 * unpooled),
        product,
    )
    shape = tiling.tile, 8 * index.element_size(), pooling.pool if pooling else None
    call: Callable[..., None]
    if sharing.threads > 1:
        kernel = shared_convolve(*shape)
        call = functools.partial(run_in_threads, kernel, sharing.threads, record.address)
    else:
        call = functools.partial(convolve(*shape), record.address, 0, images.count)
    return ConvolutionPlan(
        call=call,
        record=record,
        stored_shape=(images.count, channels, computed_height, tiling.line),
        columns=columns,
        output_shape=(images.count, channels, *layout.output_size),
        pooled_shape=(images.count, channels, *pooling.size) if pooling else None,
        planes_size=planes * sharing.by_images if layout.copied else 0,
        unpooled_size=unpooled * sharing.by_images,
    )


def _product_record(weight: Record, layout: Layout, tiling: Tiling, chunk: int) -> Record:
    """Return the record of the product that computes one image."""
    fields = MatrixRecord(
        weight=weight.address,
        chunk=chunk,
        by_tiles=0,
        x_step=4,
        x_line=4 * layout.line,
        y_row=4 * layout.computed_size[0] * tiling.line,
        y_line=4 * tiling.line,
        tiles=tiling.table.data_ptr(),
        tile_count=len(tiling.table),
    )
    return Record(fields, weight, tiling.table)


def _image_fields(
    product: int,
    geometry: Geometry,
    images: Images,
    layout: Layout,
    tiling: Tiling,
    pooling: Pooling | None,
) -> ImageRecord:
    """Return the fields of the record of all images, without the steps from thread to thread."""
    channels = geometry.out_channels
    one_line = layout.computed_size != layout.output_size
    pooled_height, pooled_width = pooling.size if pooling else (0, 0)
    return ImageRecord(
        matrix=product,
        images=images.count,
        x_image=4 * images.image_step,
        x_channel=4 * images.channel_step,
        x_line=4 * images.line_step,
        channels=geometry.in_channels,
        height=images.height,
        width=images.width,
        top=geometry.padding[0][0],
        left=geometry.padding[1][0],
        stride_down=geometry.stride[0],
        stride_along=geometry.stride[1],
        line=layout.line,
        plane=layout.plane,
        planes_apart=0,
        y_image=0 if pooling else 4 * channels * layout.computed_size[0] * tiling.line,
        y_apart=0,
        pool_line=4 * (layout.output_size[1] if one_line else tiling.line),
        pooled_height=pooled_height,
        pooled_width=pooled_width,
        pooled_image=4 * channels * pooled_height * pooled_width,
    )


def choose_layout(geometry: Geometry, images: Images) -> Layout:
    """Return whether images are copied, and the layout that the kernel reads.

    Raises:
        ArgumentError: The images are smaller than the kernel.
    """
    height, width, (down, along) = images.height, images.width, geometry.stride
    tall, wide = geometry.padded_size(height, width)
    output_size = geometry.output_size(height, width)
    unpadded = (tall, wide) == (height, width)
    contiguous = images.line_step == width and images.channel_step >= 0
    strided = geometry.stride != (1, 1)
    copied = not unpadded or strided or not contiguous or output_size[1] < _MIN_COLUMNS
    computed_size = output_size
    if copied:
        line = math.ceil(wide / along)
        phase = math.ceil(tall / down) * line
        plane = phase * down * along
    else:
        line, phase, plane = width, 0, images.channel_step
        if geometry.kernel_size == (1, 1):
            computed_size = 1, height * width
    return Layout(
        copied=copied,
        line=line,
        phase=phase,
        plane=plane,
        output_size=output_size,
        computed_size=computed_size,
    )


def choose_tiles(layout: Layout) -> Tiling:
    """Return the tiles that an output channel is divided into."""
    lines, columns = layout.computed_size
    tile = tile_for_image(lines, columns)
    line = max(columns, tile.width)
    table = image_table(lines, columns, tile, input_line=layout.line, output_line=line)
    return Tiling(tile=tile, table=table, line=line)


def choose_sharing(rows: SparseRows, tiling: Tiling, images: int, threads: int) -> Sharing:
    """Return how many threads share the work, and whether by images or by output channels."""
    cost = images * rows.work() * tile_cost(tiling.tile) * len(tiling.table)
    if not is_worth_sharing(cost, threads):
        return Sharing(threads=1, by_images=1)
    return Sharing(threads=threads, by_images=threads if images >= threads else 1)


def plan_pooling(window: Window | None, output_size: Pair) -> Pooling | None:
    """Return the pooling that the kernel computes.

    None if there is no pooling, or if it is left to torch, because the output is smaller than a
    window, which torch reports, or than two windows beside each other, the smallest vector.
    """
    if window is None:
        return None
    (tall, wide), (down, across) = window.size, window.stride
    height = (output_size[0] - tall) // down + 1
    width = (output_size[1] - wide) // across + 1
    if height < 1 or width < 2:
        return None
    lanes = min(LANES, 1 << (width.bit_length() - 1))
    return Pooling(pool=Pool(tall, wide, down, across, lanes), size=(height, width))


def element_offsets(rows: SparseRows, geometry: Geometry, layout: Layout) -> torch.Tensor:
    """Return, for each element of the weight, the floats from an output's place to its input."""
    stride_down, stride_along = geometry.stride
    channel, place = np.divmod(from_index(rows.columns), math.prod(geometry.kernel_size))
    down, along = np.divmod(place, geometry.kernel_size[1])
    down, along = down * geometry.dilation[0], along * geometry.dilation[1]
    counts = np.diff(rows.pointers.numpy())
    group = np.arange(geometry.out_channels) // (geometry.out_channels // geometry.groups)
    channel += np.repeat(group, counts) * (geometry.in_channels // geometry.groups)
    offsets = channel * layout.plane + (down // stride_down) * layout.line + along // stride_along
    offsets += ((down % stride_down) * stride_along + along % stride_along) * layout.phase
    return as_index(offsets, int(offsets.max(initial=0)) + 1)
