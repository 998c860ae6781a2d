"""Linear layers that run on the non-zero elements of their weights only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.runtime.kernels import dot, matrix, pack, unpack, with_threads
from prunus.runtime.rows import SparseRows
from prunus.runtime.sparse_layer import CHUNK_BYTES, WORTH_SHARING, SparseLayer, threads_at_hand
from prunus.runtime.tiling import (
    LANES,
    cost,
    items_as_they_lie,
    items_in_panels,
    panels,
    places,
    whole_vectors,
)

__all__ = ["SparseLinear"]

_WORTH_SHARING_ONE = 15_000
"""Elements from which on waking a thread pays where there is a single item."""

_WORTH_SHARING_MOVES = 200_000
"""Floats to be laid out anew from which on it pays."""

_PANEL_BYTES = 1 << 20
"""Activations that stay in the second-level cache while the matrix goes over them."""

_WORTH_PACKING = 100
"""How often each input must be read that it pays to lay those of a tile side by side first."""

_WORTH_PACKING_CROWDED = 16
"""The same where the lines of a tile would meet in a few places of the second-level cache."""

_WORTH_PACKING_RAGGED = 40
"""The same where vectors would be read from two cache lines each."""


class SparseLinear(SparseLayer):
    """A linear layer, y = x Wᵀ + b, for inference on the CPU.

    Activations lie feature by feature in memory, so that the innermost loop runs over the batch. An
    input that lies so is read as it is, any other is transposed first; the output has the shape
    that is expected of it, and lies feature by feature unless ``by_item``.

    Args:
        linear: The layer to do the work of; float32.
        rectified: Whether to do the work of a ReLU after it as well.
        by_item: Whether the output is to lie item by item, as torch's own.

    Raises:
        PrunusError: On a call: the input has other features, or is not float32 on the CPU.

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
        threads = threads_at_hand()
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
        threads, strides, at = threads_at_hand(), x.stride(), x.data_ptr()
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
        chunk = rows.chunk(max(CHUNK_BYTES, activations))
        share = threads > 1 and rows.work() * cost(tile) * len(starts) > WORTH_SHARING
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


def _reaches(x: torch.Tensor, items: int) -> bool:
    """Tell whether so many items of the last feature belong to a tensor's storage."""
    last = x.storage_offset() + (x.shape[1] - 1) * x.stride(1) + items
    return 4 * last <= x.untyped_storage().nbytes()
