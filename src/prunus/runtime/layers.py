"""Layers that run on the non-zero elements of their weights only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import nn

from prunus.errors import UserError
from prunus.runtime.fusion import square
from prunus.runtime.kernels import (
    Pool,
    Tile,
    convolve,
    dot,
    matrix,
    pack,
    unpack,
    with_threads,
)
from prunus.runtime.rows import SparseRows, as_index, from_index
from prunus.runtime.tiling import (
    LANES,
    cost,
    covering,
    fitting,
    items_as_they_lie,
    items_in_panels,
    panels,
    places,
    whole_vectors,
)

__all__ = ["SparseConv", "SparseLinear"]


def _threads() -> int:
    """Return how many threads torch would use."""
    return min(torch.get_num_threads(), _MOST_THREADS)


_MOST_THREADS = int(numba.config.NUMBA_NUM_THREADS)


class _SparseLayer(nn.Module):
    """What sparse layers have in common.

    Args:
        rows: The weight.
        size: Elements of the weight, zeros included.
        rectified: Whether the layer does what a ReLU after it would do.
    """

    def __init__(self, rows: SparseRows, size: int, rectified: bool) -> None:
        super().__init__()
        self.rows, self.size, self.rectified = rows, size, rectified
        self._floor = np.float32(0.0 if rectified else -np.inf)
        self._plans: dict[Any, Any] = {}

    @property
    def density(self) -> float:
        """The share of the weight that is not zero."""
        return len(self.rows.values) / max(1, self.size)

    def _about(self) -> str:
        return f"density={self.density:.3g}" + (", with ReLU" if self.rectified else "")

    def _apply(self, *arguments: Any, **settings: Any) -> Any:
        self._plans.clear()
        return super()._apply(*arguments, **settings)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # they hold addresses

    def _planned(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was worked out for inputs of this kind."""
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            plan = self._plans[key] = make()
        return plan

    def _check(self, x: torch.Tensor, fits: bool, wanted: str) -> None:
        problems = []
        if not fits:
            problems.append(f"of shape {wanted}, but is of shape {tuple(x.shape)}")
        if x.dtype != torch.float32:
            problems.append(f"float32, but is {str(x.dtype).removeprefix('torch.')}")
        if x.device.type != "cpu":
            problems.append(f"on the CPU, but is on {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            problems.append(
                "without a gradient, for this layer was made for inference: call it under "
                "torch.no_grad(), and train the network that it was made from"
            )
        if problems:
            raise UserError(f"{type(self).__name__}: the input must be " + "; and ".join(problems))


class SparseLinear(_SparseLayer):
    """A linear layer, y = x Wᵀ + b, for inference on the CPU.

    Activations lie feature by feature in memory, so that the innermost loop runs over the batch. An
    input that lies so is read as it is, any other is transposed first; the output has the shape
    that is expected of it, and lies feature by feature unless ``by_item``.

    Args:
        linear: The layer to do the work of; float32.
        rectified: Whether to do the work of a ReLU after it as well.
        by_item: Whether the output is to lie item by item, as torch's own.

    Raises:
        UserError: On a call: the input has other features, or is not float32 on the CPU.

    Example:
        >>> linear = nn.Linear(4, 3)
        >>> _ = nn.init.zeros_(linear.weight[:, 1:])
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(SparseLinear(linear)(x), linear(x), atol=1e-6)
        True
    """

    def __init__(
        self, linear: nn.Linear, *, rectified: bool = False, by_item: bool = False
    ) -> None:
        rows = SparseRows(linear.weight, linear.bias)
        super().__init__(rows, linear.weight.numel(), rectified)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.by_item = by_item

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.in_features}, {self.out_features}, {self._about()}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x Wᵀ + b, of shape (..., out_features)."""
        shape = x.shape
        fits = len(shape) > 0 and shape[-1] == self.in_features
        if not fits or x.dtype is not torch.float32 or x.requires_grad or not x.is_cpu:
            self._check(x, fits, f"(..., {self.in_features})")
        flat = x if len(shape) == 2 else x.reshape(-1, self.in_features)
        items = flat.shape[0]
        if items == 1:
            y = self._single(flat)
        elif items == 0:
            y = x.new_empty(0, self.out_features)
        else:
            y = self._several(flat, items)
        return y if len(shape) == 2 else y.view(*shape[:-1], self.out_features)

    def _single(self, x: torch.Tensor) -> torch.Tensor:
        x, y = x.contiguous(), torch.empty(1, self.out_features)
        threads = _threads()
        call, weight = self._plans.get((1, threads)) or self._planned(
            (1, threads), lambda: self._plan_of_one(threads)
        )
        call(*weight, x.data_ptr(), y.data_ptr(), self._floor)
        return y

    def _plan_of_one(self, threads: int) -> Any:
        rows = self.rows
        bits = 8 * rows.columns.element_size()
        if threads > 1 and len(rows.values) > _WORTH_SHARING_ONE:
            return functools.partial(with_threads, dot(bits, True), threads), rows.shared(threads)
        return dot(bits, False), rows.whole()

    def _several(self, x: torch.Tensor, items: int) -> torch.Tensor:
        threads, strides, at = _threads(), x.stride(), x.data_ptr()
        spare = items % LANES != 0 and strides[0] == 1 and _reaches(x, whole_vectors(items))
        key = (items, threads, strides, at % (4 * LANES), spare)
        plan: _LinearPlan = self._plans.get(key) or self._planned(
            key, lambda: self._plan_of_several(*key)
        )
        if plan.packing is not None:
            if 1 not in strides:
                x = x.contiguous()
                at = x.data_ptr()
            source = torch.empty(plan.packed)
            plan.packing(at, *plan.lying, source.data_ptr(), plan.width)
            at = source.data_ptr()
        y = torch.empty(self.out_features, plan.room)
        plan.call(*plan.weight, at, plan.step, 0, y.data_ptr(), *plan.target)
        if not self.by_item:
            return y.t() if plan.room == items else y.t()[:items]
        result = torch.empty(items, self.out_features)
        _moving(unpack, items * self.out_features, threads)(
            y.data_ptr(), 4 * plan.room, items, self.out_features, result.data_ptr()
        )
        return result

    def _plan_of_several(
        self, items: int, threads: int, strides: tuple[int, ...], offset: int, spare: bool
    ) -> _LinearPlan:
        """Plan for so many items.

        Args:
            items: How many.
            threads: To share the work.
            strides: Floats from item to item, and from feature to feature.
            offset: Bytes from where a cache line begins to the first of them.
            spare: Whether there is something behind the last of them that makes vectors whole.
        """
        rows, features = self.rows, self.in_features
        bits = 8 * rows.columns.element_size()
        reads = len(rows.values) / max(1, features)
        seen = whole_vectors(items) if spare else items
        tile = items_as_they_lie(seen, features, _PANEL_BYTES)
        ragged = (4 * strides[1] | offset) % (4 * tile.lanes) != 0
        size = 4 * features * items
        crowded = size > 2 * _PANEL_BYTES
        far = crowded or (ragged and size > _PANEL_BYTES)
        if far:
            # They will not stay there anyway: longer runs of each feature are what is left to gain,
            # and asking for them in advance.
            tile = items_as_they_lie(seen, features, 2 * _PANEL_BYTES)
        if crowded:
            packed = reads > _WORTH_PACKING_CROWDED
        elif ragged:
            packed = reads > _WORTH_PACKING_RAGGED
        else:
            packed = reads > _WORTH_PACKING and tile.width < items
        packed = packed or strides[0] != 1
        if packed:
            tile = items_in_panels(items, features, _PANEL_BYTES)
            starts, room = panels(items, features, tile), tile.width * math.ceil(items / tile.width)
        else:
            starts, room = places(seen, tile), tile.lanes * math.ceil(seen / tile.lanes)
        activations = 4 * features * tile.width
        # Of the matrix as much at a time as of the activations, so that neither is read over and
        # over from farther away than the second-level cache.
        chunk = rows.chunk(max(_CHUNK_BYTES, activations))
        share = threads > 1 and rows.work() * cost(tile) * len(starts) > _WORTH_SHARING
        call = matrix(tile, bits, share, far and not packed)
        if share:
            # Each thread reads the whole of what is not shared out: that should be the smaller. But
            # where tiles overlap, two threads would take the same lines from each other.
            elements = (4 + bits // 8) * len(rows.values)
            by_tiles = len(starts) % threads == 0 and room == tile.width * len(starts)
            by_tiles = by_tiles and activations * len(starts) > elements
            call = functools.partial(with_threads, call, threads, by_tiles)
        item, feature = strides if 1 in strides else (features, 1)
        # A lone item or feature has any step; the other one's is then that of floats.
        contiguous = 4 if feature == 1 or features == 1 else 4 * feature
        return _LinearPlan(
            call,
            (*(rows.shared(threads) if share else rows.whole()), chunk),
            _moving(pack, items * features, threads) if packed else None,
            (4 * item, contiguous, items, features),
            room * features,
            tile.width,
            4 * tile.width if packed else 4 * feature,
            room,
            (4 * room, 0, self._floor, starts.data_ptr(), len(starts)),
            starts,
        )


@dataclass(frozen=True)
class _LinearPlan:
    """What a call of a linear layer needs for inputs of one shape and layout.

    Attributes:
        call: The kernel.
        weight: Its first arguments.
        packing: The kernel that lays the items out in panels first; None where they stay.
        lying: Those of its arguments that describe the input.
        packed: Floats of the panels.
        width: Items in a panel.
        step: Bytes from feature to feature, of the panels or of the input itself.
        room: Floats between the lines of the output.
        target: The kernel's last arguments: those that describe the output and the tiles.
        kept: What the addresses among them belong to.
    """

    call: Callable[..., None]
    weight: tuple[int, ...]
    packing: Callable[..., None] | None
    lying: tuple[int, ...]
    packed: int
    width: int
    step: int
    room: int
    target: tuple[Any, ...]
    kept: torch.Tensor


def _moving(
    kernel: Callable[[bool], Callable[..., None]], floats: int, threads: int
) -> Callable[..., None]:
    """Return the kernel that lays so many floats out anew, by one thread or by several."""
    if threads > 1 and floats > _WORTH_SHARING_MOVES:
        return functools.partial(with_threads, kernel(True), threads)
    return kernel(False)


_WORTH_SHARING = 9_000
"""What a product must cost, as :func:`cost` counts it, that it pays to wake another thread."""

_WORTH_SHARING_ONE = 15_000
"""Elements from which on it pays where there is a single item."""

_WORTH_SHARING_MOVES = 200_000
"""Floats to be laid out anew from which on it pays."""

_PANEL_BYTES = 1 << 20
"""Activations that stay in the second-level cache while the matrix goes over them."""

_CHUNK_BYTES = 1 << 17
"""What is read of the matrix, at least, before the next tile of activations has its turn."""

_WORTH_PACKING = 100
"""How often each input must be read that it pays to lay those of a tile side by side first."""

_WORTH_PACKING_CROWDED = 16
"""The same where the lines of a tile would meet in a few places of the second-level cache."""

_WORTH_PACKING_RAGGED = 40
"""The same where vectors would be read from two cache lines each."""

_REMEMBERED = 32
"""Kinds of input of which a layer keeps what it worked out."""


def _reaches(x: torch.Tensor, items: int) -> bool:
    """Tell whether so many items of the last feature belong to a tensor's storage."""
    last = x.storage_offset() + (x.shape[1] - 1) * x.stride(1) + items
    return 4 * last <= x.untyped_storage().nbytes()


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


class SparseConv(_SparseLayer):
    """A convolution over one or two dimensions, for inference on the CPU.

    Every element of the weight is multiplied by a shifted plane of its input channel, so that the
    innermost loop runs over pixels, and nothing is unfolded. Where there is padding or a stride,
    each image is copied onto planes with a border first.

    Args:
        conv: The layer to do the work of: nn.Conv1d or nn.Conv2d with zero padding, float32.
        rectified: Whether to do the work of a ReLU after it as well.
        pool: A max pooling after it whose work to do as well, as
            :func:`prunus.runtime.fusion.fits_pool` allows.

    Raises:
        UserError: On a call: the input has other channels, is smaller than the kernel, or is not
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
        threads = _threads()
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
        share = threads > 1 and items * each > _WORTH_SHARING
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
            (*weight, rows.chunk(_CHUNK_BYTES)),
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
        (tall, wide), (down, across) = square(self.pool.kernel_size), square(self.pool.stride)
        high = (geometry.shape[0] - tall) // down + 1
        broad = (geometry.shape[1] - wide) // across + 1
        if high < 1 or broad < 2:
            return None, 0, 0  # too small for a vector, or for a window: torch does it, or says so
        lanes = min(16, 1 << (broad.bit_length() - 1))
        return Pool(tall, wide, down, across, lanes), high, broad

    def _laid_out(self, height: int, width: int, by_channel: int) -> _Geometry:
        (top, bottom), (left, right) = self.padding
        tall, wide = height + top + bottom, width + left + right
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if tall < reach[0] or wide < reach[1]:
            raise UserError(
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
