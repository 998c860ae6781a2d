"""Plans of sparse linear layers: the decisions for inputs of one shape and layout.

A plan for several items makes three decisions, one after the other: the layout in which the kernel
reads the items, the tiles that it divides them into, and how threads share the work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from prunus.runtime.kernels.arithmetic import Arithmetic, arithmetic_for
from prunus.runtime.kernels.compiling import run_in_threads
from prunus.runtime.kernels.layout import pack, unpack
from prunus.runtime.kernels.matrix import dot, shared_dot, shared_tile_rows, tile_rows
from prunus.runtime.kernels.records import MatrixRecord, PackRecord, Record, UnpackRecord
from prunus.runtime.kernels.tiles import Tile
from prunus.runtime.rows import SparseRows
from prunus.runtime.sparse_layer import CHUNK_BYTES, is_worth_sharing
from prunus.runtime.tiling import (
    in_place_table,
    panel_table,
    round_up_to_vectors,
    tile_cost,
    tile_for_panels,
    tile_in_place,
)

__all__ = [
    "Call",
    "Copy",
    "Items",
    "LinearPlan",
    "SinglePlan",
    "plan_items",
    "plan_packing",
    "plan_single",
    "vectors_fit_storage",
]

Call = Callable[[int, int], None]
"""Calls a kernel, given the addresses of its input and of its output."""

CopyCall = Callable[[int, int], int | None]
"""The same, and returns a number above 0 if rounding to int8 would hide a NaN."""

_WORTH_SHARING_SINGLE = 15_000
"""Elements above which threads share the product with a single item.

A heuristic, lowered when packing was shared among threads too: below, waking a thread takes longer
than it saves.
"""

_WORTH_SHARING_COPY = 200_000
"""Floats above which threads share a copy into another layout.

A heuristic: a copy of less takes one thread less time than waking another one.
"""

_CACHE_BYTES = 1 << 20
"""Bytes of activations that stay in the second-level cache while the matrix is read.

A heuristic: half of the 2 MiB of the second-level cache of recent server processors; the matrix
passes through the other half. On a smaller cache, activations are read from farther away.
"""

_WORTH_PACKING = 100
"""Reads of each input above which it pays to copy the items into panels first.

A heuristic, as the two below: packing reads and writes each input once, after which all reads of a
tile are contiguous. Lower values pack batches for which the copy takes longer than it saves.
"""

_WORTH_PACKING_BEYOND_CACHE = 16
"""The same where the cache does not hold the items, and each read of a line takes longer."""

_WORTH_PACKING_UNALIGNED = 40
"""The same where each vector is read from two cache lines."""


@dataclass(frozen=True, kw_only=True)
class Items:
    """The shape and layout of an input.

    Attributes:
        count: Number of items.
        features: Floats of an item.
        item_step: Floats from item to item.
        feature_step: Floats from feature to feature.
        offset: Bytes from the beginning of a cache line to the first float.
        padded: Whether the storage continues after the last item until vectors are whole.
        group: Features in a word of 32 bits of a panel: 1 unless they are rounded.
    """

    count: int
    features: int
    item_step: int
    feature_step: int
    offset: int
    padded: bool
    group: int = 1

    @property
    def words(self) -> int:
        """Words of an item."""
        return math.ceil(self.features / self.group)

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return 4 * self.words * self.count

    @property
    def readable(self) -> int:
        """Number of items that vectors may read, some of which may follow the last item."""
        return round_up_to_vectors(self.count) if self.padded else self.count


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the kernel reads the items.

    Attributes:
        packed: Whether they are copied into panels first.
        prefetch: Whether they are prefetched, because the second-level cache does not hold them.
    """

    packed: bool
    prefetch: bool


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of the activations.

    Attributes:
        tile: Shape of a tile.
        table: The table of tiles, see :mod:`prunus.runtime.tiling`.
        output_width: Floats between the rows of the output.
    """

    tile: Tile
    table: torch.Tensor
    output_width: int


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How threads share the work.

    Attributes:
        threads: Number of threads; 1 if it is not shared.
        by_tiles: Whether each thread computes its own tiles, in place of its own rows.
    """

    threads: int
    by_tiles: bool


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy of activations into another layout.

    Attributes:
        call: Calls the kernel.
        record: The record that the call reads.
        size: Floats of the copy, or words.
    """

    call: CopyCall
    record: Record
    size: int


@dataclass(frozen=True, kw_only=True)
class SinglePlan:
    """The plan for a single item.

    Attributes:
        call: Calls the kernel.
        record: The record that the call reads.
    """

    call: Call
    record: Record


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """The plan for several items of one shape and layout.

    Attributes:
        call: Calls the kernel.
        record: The record that the call reads.
        packing: The copy of the items into panels; None if they are read where they are.
        output_width: Floats between the rows of the output.
        unpacking: The copy of the output into one stored item by item.
    """

    call: Call
    record: Record
    packing: Copy | None
    output_width: int
    unpacking: Copy


def plan_single(rows: SparseRows, *, threads: int, relu: bool) -> SinglePlan:
    """Return the plan for a single item."""
    if len(rows.values) <= _WORTH_SHARING_SINGLE:
        threads = 1
    record = rows.record(threads=threads, relu=relu)
    call: Call
    if threads > 1:
        kernel = shared_dot(rows.index_bits)
        call = functools.partial(run_in_threads, kernel, threads, record.address)
    else:
        call = functools.partial(dot(rows.index_bits), record.address, 0, len(rows.bias))
    return SinglePlan(call=call, record=record)


def plan_items(
    rows: SparseRows,
    items: Items,
    *,
    threads: int,
    relu: bool,
    arithmetic: Arithmetic | None = None,
) -> LinearPlan:
    """Return the plan for several items.

    Args:
        rows: The sparse matrix.
        items: Shape and layout of the input.
        threads: Number of threads available.
        relu: Whether to apply a ReLU to the outputs.
        arithmetic: How elements are multiplied. Default None: by the processor's instruction.
    """
    layout = choose_layout(rows, items)
    tiling = choose_tiles(layout, items)
    sharing = choose_sharing(rows, tiling, items, threads)
    weight = rows.record(threads=sharing.threads, relu=relu)
    tile_bytes = 4 * items.words * tiling.tile.width
    product = MatrixRecord(
        weight=weight.address,
        # At a time as much of the matrix as of the activations, so that neither is read repeatedly
        # from beyond the second-level cache.
        chunk=rows.rows_within(max(CHUNK_BYTES, tile_bytes)),
        by_tiles=int(sharing.by_tiles),
        x_step=4 * (tiling.tile.width if layout.packed else items.feature_step),
        x_line=0,
        y_row=4 * tiling.output_width,
        y_line=0,
        tiles=tiling.table.data_ptr(),
        tile_count=len(tiling.table),
    )
    shape = tiling.tile, rows.index_bits, layout.prefetch, arithmetic or arithmetic_for(rows.group)
    record = Record(product, weight, tiling.table)
    call: Call
    if sharing.threads > 1:
        kernel = shared_tile_rows(*shape)
        call = functools.partial(run_in_threads, kernel, sharing.threads, record.address)
    else:
        span = (0, len(rows.bias), 0, len(tiling.table))
        call = functools.partial(tile_rows(*shape), record.address, *span)
    return LinearPlan(
        call=call,
        record=record,
        packing=plan_packing(items, tiling.tile, threads, rows.input_rounding)
        if layout.packed
        else None,
        output_width=tiling.output_width,
        unpacking=_unpacking(items.count, len(rows.bias), tiling.output_width, threads),
    )


def choose_layout(rows: SparseRows, items: Items) -> Layout:
    """Return whether items are packed into panels, and whether they are prefetched otherwise."""
    reads = len(rows.values) / max(1, items.features)
    tile = tile_in_place(items.readable, items.features, _CACHE_BYTES)
    unaligned = (4 * items.feature_step | items.offset) % (4 * tile.lanes) != 0
    beyond_cache = items.size > 2 * _CACHE_BYTES
    if items.item_step != 1 or items.group > 1:
        packed = True
    elif beyond_cache:
        packed = reads > _WORTH_PACKING_BEYOND_CACHE
    elif unaligned:
        packed = reads > _WORTH_PACKING_UNALIGNED
    else:
        packed = reads > _WORTH_PACKING and tile.width < items.count
    far = beyond_cache or (unaligned and items.size > _CACHE_BYTES)
    return Layout(packed=packed, prefetch=far and not packed)


def choose_tiles(layout: Layout, items: Items) -> Tiling:
    """Return the tiles that items of this layout are divided into."""
    if layout.packed:
        tile = tile_for_panels(items.count, items.words, _CACHE_BYTES)
        return Tiling(
            tile=tile,
            table=panel_table(items.count, items.words, tile),
            output_width=tile.width * math.ceil(items.count / tile.width),
        )
    # Where the cache does not hold the activations, longer runs of each feature are what is left to
    # gain, beside prefetching them.
    max_bytes = 2 * _CACHE_BYTES if layout.prefetch else _CACHE_BYTES
    tile = tile_in_place(items.readable, items.features, max_bytes)
    return Tiling(
        tile=tile,
        table=in_place_table(items.readable, tile),
        output_width=tile.lanes * math.ceil(items.readable / tile.lanes),
    )


def choose_sharing(rows: SparseRows, tiling: Tiling, items: Items, threads: int) -> Sharing:
    """Return how many threads share the work, and whether by tiles or by rows."""
    tile, count = tiling.tile, len(tiling.table)
    if not is_worth_sharing(rows.work() * tile_cost(tile) * count, threads):
        return Sharing(threads=1, by_tiles=False)
    # Every thread reads all of the operand that is not divided, which should be the smaller one.
    # But where tiles overlap, two threads would write the same cache lines.
    even = count % threads == 0 and tiling.output_width == tile.width * count
    by_tiles = even and 4 * items.words * tile.width * count > rows.element_bytes
    return Sharing(threads=threads, by_tiles=by_tiles)


def plan_packing(
    items: Items, tile: Tile, threads: int, rounding: torch.Tensor | None = None
) -> Copy:
    """Return the copy of items into panels of the width of a tile.

    Items of which neither the features nor the items are contiguous must be made contiguous first.

    Args:
        items: The items.
        tile: The tile.
        threads: Number of threads available.
        rounding: Factor and zero point of the rounding to int8. Default None: no rounding to int8.
    """
    rounding = torch.zeros(2) if rounding is None else rounding
    count, features = items.count, items.features
    item_step, feature_step = items.item_step, items.feature_step
    if 1 not in (item_step, feature_step):
        item_step, feature_step = features, 1  # the layer makes such an input contiguous first
    # A single item or feature may have any step; the other one's is then that of floats.
    feature_bytes = 4 if feature_step == 1 or features == 1 else 4 * feature_step
    threads = _copy_threads(count * features, threads)
    record = PackRecord(
        x_item=4 * item_step,
        x_feature=feature_bytes,
        items=count,
        features=features,
        width=tile.width,
        rounding=rounding.data_ptr(),
    )
    size = tile.width * math.ceil(count / tile.width) * items.words
    return _copy(pack(items.group, threads > 1), Record(record, rounding), threads, size)


def _unpacking(items: int, features: int, output_width: int, threads: int) -> Copy:
    threads = _copy_threads(items * features, threads)
    record = UnpackRecord(x_feature=4 * output_width, items=items, features=features)
    return _copy(unpack(threads > 1), Record(record), threads, items * features)


def _copy_threads(floats: int, threads: int) -> int:
    return threads if floats > _WORTH_SHARING_COPY else 1


def _copy(kernel: Callable[..., Any], record: Record, threads: int, size: int) -> Copy:
    call: CopyCall = functools.partial(kernel, record.address)
    if threads > 1:
        call = functools.partial(run_in_threads, kernel, threads, record.address)
    return Copy(call=call, record=record, size=size)


def vectors_fit_storage(x: torch.Tensor) -> bool:
    """Return whether the last vector of each feature stays within the storage of a tensor.

    Args:
        x: Items whose features are contiguous, of shape (items, features).
    """
    items = round_up_to_vectors(x.shape[0])
    end = x.storage_offset() + (x.shape[1] - 1) * x.stride(1) + items
    return 4 * end <= x.untyped_storage().nbytes()
