"""Division of a layer's activations into tiles.

A table of tiles has one row for each tile: offset of its first input, offset of its first output,
and offset of the last vector of a line from the start of the line, all in bytes.
"""

from __future__ import annotations

import math

import torch

from prunus.runtime.kernels.tiles import LANES, Tile

__all__ = [
    "image_table",
    "in_place_table",
    "panel_table",
    "round_up_to_vectors",
    "tile_cost",
    "tile_for_image",
    "tile_for_panels",
    "tile_in_place",
]

_COST = (0.46, 0.70, 0.82, 0.94, 1.18, 1.41, 1.65, 1.88)
"""Cost of an element of the matrix, by the number of vectors of 16 floats that it is multiplied by.

In units of about two nanoseconds. The measurement behind these numbers was not kept. The choice of
a tile depends only on their ratios, which trade a wider tile's cheaper vectors against unused ones.
"""

_NARROW_COST = {4: 0.35, 8: 0.4}
"""The same for a single vector of fewer floats."""

_MAX_VECTORS = 8
"""Vectors of a tile of an image: as many sums as stay in registers beside weight and inputs."""

_TILE_OVERHEAD = 2
"""Cost of a tile of an image beside its vectors, in vectors.

A heuristic: reading weight and index again for each tile. Higher values prefer larger tiles, which
overlap more where they do not divide the image.
"""


def tile_cost(tile: Tile) -> float:
    """Return the cost of multiplying a tile by an element of a matrix, see ``_COST``.

    Example:
        >>> tile_cost(Tile(16, 4)), tile_cost(Tile(16, 1, 4))
        (0.94, 0.94)
    """
    return _NARROW_COST.get(tile.width * tile.down, _COST[tile.vectors - 1])


def tile_for_panels(items: int, features: int, max_bytes: int) -> Tile:
    """Return the cheapest tile for items that are copied into panels of its width.

    Args:
        items: Number of items.
        features: Floats of an item.
        max_bytes: Size that the activations of a tile stay within, where a tile allows it.

    Example:
        >>> tile_for_panels(70, 1_000, 1 << 20).width
        80
    """
    tiles = [*(Tile(lanes, 1) for lanes in _NARROW_COST)]
    tiles += [Tile(LANES, across) for across in range(1, len(_COST) + 1)]
    small = [tile for tile in tiles if 4 * tile.width * features <= max_bytes] or tiles[:1]
    return min(
        small, key=lambda tile: (math.ceil(items / tile.width) * tile_cost(tile), tile.width)
    )


def panel_table(items: int, features: int, tile: Tile) -> torch.Tensor:
    """Return the table of tiles for items in panels.

    Example:
        >>> panel_table(70, 1_000, Tile(16, 3)).tolist()
        [[0, 0, 128], [192000, 192, 128]]
    """
    starts = 4 * tile.width * torch.arange(math.ceil(items / tile.width))
    return _table(starts * features, starts, tile)


def round_up_to_vectors(items: int) -> int:
    """Return the smallest number of items, at least as large, that fills whole vectors.

    Example:
        >>> [round_up_to_vectors(items) for items in (2, 3, 5, 10, 33)]
        [2, 4, 8, 16, 48]
    """
    vector = min(LANES, 1 << (items - 1).bit_length())
    return vector * math.ceil(items / vector)


def tile_in_place(items: int, features: int, max_bytes: int) -> Tile:
    """Return the cheapest tile for items that are read where they are, at least two.

    Arguments as those of :func:`tile_for_panels`.

    Example:
        >>> tile_in_place(70, 1_000, 1 << 20)
        Tile(lanes=16, across=5, down=1)
        >>> tile_in_place(5, 1_000, 1 << 20)
        Tile(lanes=4, across=2, down=1)
    """
    lanes = min(LANES, 1 << (items.bit_length() - 1))
    vectors = math.ceil(items / lanes)
    tiles = [Tile(lanes, across) for across in range(1, min(vectors, len(_COST)) + 1)]
    small = [tile for tile in tiles if 4 * tile.width * features <= max_bytes] or tiles[:1]
    return min(
        small, key=lambda tile: (math.ceil(vectors / tile.across) * tile_cost(tile), tile.width)
    )


def in_place_table(items: int, tile: Tile) -> torch.Tensor:
    """Return the table of tiles for items that are read where they are.

    No tile extends beyond the items. The last tile begins earlier if too few vectors are left for
    it, and its last vector begins earlier if too few items are left for that.

    Example:
        >>> in_place_table(70, Tile(16, 3)).tolist()
        [[0, 0, 128], [128, 128, 88]]
    """
    vectors = math.ceil(items / tile.lanes)
    starts = torch.arange(0, vectors, tile.across).clamp(max=vectors - tile.across)
    table = _table(4 * tile.lanes * starts, 4 * tile.lanes * starts, tile)
    table[-1, 2] = 4 * (items - tile.lanes) - table[-1, 1]
    return table


def _table(inputs: torch.Tensor, outputs: torch.Tensor, tile: Tile) -> torch.Tensor:
    tail = torch.full_like(outputs, 4 * (tile.width - tile.lanes))
    return torch.stack([inputs, outputs, tail], dim=1)


def tile_for_image(lines: int, columns: int) -> Tile:
    """Return the tile that covers an image with the fewest vectors, the widest of equals.

    Example:
        >>> tile_for_image(28, 28)
        Tile(lanes=16, across=1, down=8)
    """
    shapes = [
        (lanes, across, down)
        for lanes in (4, 8, 16)
        for across in (1, 2, 4, 8)
        for down in (1, 2, 4, 8)
        if across * down <= _MAX_VECTORS and down <= lines
        if lanes * across <= columns or (lanes, across) == (4, 1)
    ]

    def work(shape: tuple[int, int, int]) -> tuple[float, int]:
        lanes, across, down = shape
        vectors = math.ceil(columns / (lanes * across)) * across * math.ceil(lines / down) * down
        tiles = vectors / (across * down)
        return vectors + _TILE_OVERHEAD * tiles, -lanes

    return Tile(*min(shapes, key=work))


def image_table(
    lines: int, columns: int, tile: Tile, *, input_line: int, output_line: int
) -> torch.Tensor:
    """Return the table of tiles for an image; the last of a line or column overlap those before.

    Args:
        lines: Lines of the image.
        columns: Floats of a line.
        tile: Shape of a tile.
        input_line: Floats from line to line of the inputs.
        output_line: Floats from line to line of the outputs.

    Example:
        >>> image_table(3, 10, Tile(8, 1, 2), input_line=12, output_line=10).tolist()
        [[0, 0, 0], [8, 8, 0], [48, 40, 0], [56, 48, 0]]
    """
    down = _starts(lines, tile.down)[:, None]
    along = _starts(columns, tile.width)
    inputs, outputs = (4 * (down * line + along).flatten() for line in (input_line, output_line))
    return _table(inputs, outputs, tile)


def _starts(length: int, step: int) -> torch.Tensor:
    return torch.arange(0, length, step).clamp(max=max(0, length - step))
