"""Convolutions that run on the non-zero elements of their weights only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.errors import PrunusError
from prunus.runtime.fusion import as_pair
from prunus.runtime.kernels import Pool, Tile, convolve, with_threads
from prunus.runtime.rows import SparseRows, as_index, from_index
from prunus.runtime.sparse_layer import CHUNK_BYTES, WORTH_SHARING, SparseLayer, threads_at_hand
from prunus.runtime.tiling import cost, covering, fitting

__all__ = ["SparseConv"]


@dataclass(frozen=True)
class _Geometry:
    """How a convolution goes over images of one size.

    Attributes:
        index: Of each element of the weight, the floats from an output's place to what it reads.
        bits: Of each index.
        tile: What is worked on at a time.
        starts: Of each tile, the bytes from the first input and the first output on, and its tail.
        line: Floats between lines of the planes.
        plane: Floats between channels of the planes.
        shape: Height and width of the output.
        seen: The same as the kernel sees them: one line, where each pixel is by itself.
        room: Floats between lines of the output.
        copied: Whether the images are to be copied onto planes.
    """

    index: torch.Tensor
    bits: int
    tile: Tile
    starts: torch.Tensor
    line: int
    plane: int
    shape: tuple[int, int]
    seen: tuple[int, int]
    room: int
    copied: bool


@dataclass(frozen=True)
class _Plan:
    """What a call of a convolution needs for inputs of one shape and layout.

    Attributes:
        call: The kernel.
        weight: Its first arguments.
        source: Those that describe the input.
        geometry: Those that describe the planes.
        target: Those that describe the output.
        stored: The shape in which the output is stored.
        seen: Its height and width as the kernel sees them.
        shape: Its height and width.
        floats: Of the planes; 0 for none.
        scratch: Floats for images that are not pooled yet; 0 for none.
        pooling: The last arguments: those that describe the pooled output.
        pooled: The shape of the pooled output; None without pooling.
        planes: Such as were used, and whose borders are zero; what is scratch comes after them.
        kept: What the addresses among the arguments belong to.
    """

    call: Callable[..., None]
    weight: tuple[int, ...]
    source: tuple[int, ...]
    geometry: tuple[int, ...]
    target: tuple[Any, ...]
    stored: tuple[int, int, int, int]
    seen: tuple[int, int]
    shape: tuple[int, int]
    floats: int
    scratch: int
    pooling: tuple[int, ...]
    pooled: tuple[int, int, int, int] | None
    planes: list[torch.Tensor]
    kept: _Geometry

    def new_planes(self) -> torch.Tensor:
        return torch.zeros(self.floats + self.scratch)


class SparseConv(SparseLayer):
    """A convolution over one or two dimensions, for inference on the CPU.

    Every element of the weight is multiplied by a shifted plane of its input channel, so that the
    innermost loop runs over pixels, and nothing is unfolded. Where there is padding or a stride,
    each image is copied onto planes with a border first.

    Args:
        conv: The layer to do the work of: nn.Conv1d or nn.Conv2d with zero padding, float32.
        rectified: Whether to do the work of a ReLU after it as well.
        pool: A max pooling after it whose work to do as well, as
            :func:`prunus.runtime.fusion.is_fusible_pool` allows.

    Raises:
        PrunusError: On a call: the input has other channels, is smaller than the kernel, or is not
            float32 on the CPU.

    Example:
        >>> conv = nn.Conv2d(2, 3, kernel_size=3, padding=1)
        >>> _ = nn.init.zeros_(conv.weight[:, 1])
        >>> x = torch.randn(5, 2, 8, 8)
        >>> torch.allclose(SparseConv(conv)(x), conv(x), atol=1e-6)
        True
    """

    def __init__(
        self,
        conv: nn.Conv1d | nn.Conv2d,
        *,
        rectified: bool = False,
        pool: nn.MaxPool2d | None = None,
    ) -> None:
        rows = SparseRows(conv.weight.flatten(1), conv.bias)
        super().__init__(rows, conv.weight.numel(), rectified)
        self.pool = pool
        self.dimensions = conv.weight.dim() - 2
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.groups, self.kernel_size = conv.groups, _pair(conv.kernel_size)
        self.stride, self.dilation = _pair(conv.stride), _pair(conv.dilation)
        before = conv._reversed_padding_repeated_twice  # the last dimension's comes first
        ends = [(before[i], before[i + 1]) for i in range(0, len(before), 2)][::-1]
        self.padding = tuple(ends) if self.dimensions == 2 else ((0, 0), ends[0])

    def extra_repr(self) -> str:
        """Return the sizes."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"{self._about()}{', with max pooling' if self.pool else ''}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution, of shape (items, out_channels, height, width)."""
        dimensions = self.dimensions
        single = x.dim() == dimensions + 1
        fits = x.dim() - dimensions in (1, 2) and x.shape[-dimensions - 1] == self.in_channels
        if not fits or x.dtype is not torch.float32 or x.requires_grad or not x.is_cpu:
            places = ", ".join(("height", "width")[-dimensions:])
            self._check(x, fits, f"(items, {self.in_channels}, {places})")
        x = x.unsqueeze(0) if single else x
        y = self._images(x.unsqueeze(2) if dimensions == 1 else x)
        y = y.squeeze(2) if dimensions == 1 else y
        return y.squeeze(0) if single else y

    def _images(self, x: torch.Tensor) -> torch.Tensor:
        if x.stride(3) != 1:
            x = x.contiguous()
        threads = threads_at_hand()
        key = (x.shape, x.stride(), threads)
        plan: _Plan = self._planned(key, lambda: self._plan(x.shape, x.stride(), threads))
        planes = plan.planes.pop() if plan.planes else plan.new_planes()
        at = planes.data_ptr()
        y = torch.empty(plan.pooled or plan.stored)
        plan.call(
            *plan.weight, x.data_ptr(), *plan.source, at if plan.floats else 0,
            *plan.geometry, at + 4 * plan.floats if plan.scratch else y.data_ptr(), *plan.target,
            y.data_ptr(), *plan.pooling,
        )  # fmt: skip
        plan.planes.append(planes)
        if plan.pooled is not None:
            return y
        if plan.stored[3] > plan.seen[1]:
            y = y[..., : plan.seen[1]]
        y = y if plan.seen == plan.shape else y.view(*plan.stored[:2], *plan.shape)
        return y if self.pool is None else self.pool(y)

    def _plan(self, shape: torch.Size, strides: tuple[int, ...], threads: int) -> _Plan:
        items, channels, height, width = shape
        by_image, by_channel, by_line, _ = strides
        geometry = self._laid_out(height, width, by_channel if by_line == width else -1)
        tall, room = geometry.seen[0], geometry.room
        rows, apart = self.rows, channels * geometry.plane + _SLACK
        each = rows.work() * cost(geometry.tile) * len(geometry.starts)
        share = threads > 1 and items * each > WORTH_SHARING
        floats = 0
        if geometry.copied:
            floats = apart * (threads if share and items >= threads else 1)
        pool, high, wide = self._pooling(geometry)
        image = self.out_channels * tall * room
        pooled = (items, self.out_channels, high, wide) if pool else None
        own = image + _SLACK if pool else 0  # for each thread that works on images of its own
        scratch = own * (threads if share and items >= threads else 1)
        kernel = convolve(geometry.tile, geometry.bits, share, pool)
        if share:
            call = functools.partial(with_threads, kernel, threads, items)
            weight = rows.shared(threads, geometry.index)
        else:
            call = functools.partial(kernel, 0, items)
            weight = rows.whole(geometry.index)
        lines = (geometry.line, geometry.plane, *([4 * apart] if share else []))
        return _Plan(
            call,
            (*weight, rows.chunk(CHUNK_BYTES)),
            (
                4 * by_image, 4 * by_channel, 4 * by_line, channels, height, width,
                self.padding[0][0], self.padding[1][0], self.stride[0],
            ),
            lines,
            (
                0 if pool else 4 * image, 4 * tall * room, 4 * room, self._floor,
                geometry.starts.data_ptr(), len(geometry.starts),
                4 * (room if geometry.seen == geometry.shape else geometry.shape[1]), high, wide,
            ),
            (items, self.out_channels, tall, room),
            geometry.seen,
            geometry.shape,
            floats,
            scratch,
            (4 * self.out_channels * high * wide, *([4 * own] if share else [])),
            pooled,
            [],
            geometry,
        )  # fmt: skip

    def _pooling(self, geometry: _Geometry) -> tuple[Pool | None, int, int]:
        """Return the pooling, None if it is not done here, and what comes out: height and width."""
        if self.pool is None:
            return None, 0, 0
        (tall, wide), (down, across) = as_pair(self.pool.kernel_size), as_pair(self.pool.stride)
        high = (geometry.shape[0] - tall) // down + 1
        broad = (geometry.shape[1] - wide) // across + 1
        if high < 1 or broad < 2:
            return None, 0, 0  # too small for a vector, or a window: left to torch
        lanes = min(16, 1 << (broad.bit_length() - 1))
        return Pool(tall, wide, down, across, lanes), high, broad

    def _laid_out(self, height: int, width: int, by_channel: int) -> _Geometry:
        (top, bottom), (left, right) = self.padding
        tall, wide = height + top + bottom, width + left + right
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if tall < reach[0] or wide < reach[1]:
            raise PrunusError(
                f"SparseConv: the kernel covers {reach[0]}×{reach[1]} pixels, but the input has "
                f"{tall}×{wide} with its padding"
            )
        stride = self.stride[0]
        out_tall = (tall - reach[0]) // self.stride[0] + 1
        out_wide = (wide - reach[1]) // self.stride[1] + 1
        pointwise = self.kernel_size == (1, 1) and stride == 1 and (tall, wide) == (height, width)
        copied = (tall, wide) != (height, width) or stride > 1 or by_channel < 0 or out_wide < 4
        lines, columns = (1, height * width) if pointwise and not copied else (out_tall, out_wide)
        tile = fitting(lines, columns)
        room = max(columns, tile.width)
        if copied:
            line = math.ceil(wide / stride)
            phase = math.ceil(tall / stride) * line
            plane = phase * stride * stride
        else:
            line, phase, plane = width, 0, by_channel
        element = from_index(self.rows.columns)
        channel, place = np.divmod(element, math.prod(self.kernel_size))
        down, along = np.divmod(place, self.kernel_size[1])
        down, along = down * self.dilation[0], along * self.dilation[1]
        counts = np.diff(self.rows.pointers.numpy())
        group = np.arange(self.out_channels) // (self.out_channels // self.groups)
        channel += np.repeat(group, counts) * (self.in_channels // self.groups)
        index = channel * plane + (down // stride) * line + along // stride
        index += ((down % stride) * stride + along % stride) * phase
        starts = covering(lines, columns, tile, line, room)
        as_numbers = as_index(index, int(index.max(initial=0)) + 1)
        return _Geometry(
            as_numbers, 8 * as_numbers.element_size(), tile, starts, line, plane,
            (out_tall, out_wide), (lines, columns), room, copied,
        )  # fmt: skip


_SLACK = 64
"""Floats after the planes that a tile wider than an image may read, and does not use."""


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
