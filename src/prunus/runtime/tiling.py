"""Into which tiles the activations of a layer are cut."""

from __future__ import annotations

import math

import torch

from prunus.runtime.kernels import Tile

__all__ = [
    "LANES",
    "cost",
    "covering",
    "fitting",
    "items_as_they_lie",
    "items_in_panels",
    "panels",
    "places",
    "whole_vectors",
]

LANES = 16
"""Floats in the vectors that most tiles are made of."""

_COST = (0.46, 0.70, 0.82, 0.94, 1.18, 1.41, 1.65, 1.88)
"""What an element of the matrix costs by how many vectors of 16 floats it is multiplied by."""

_COST_NARROW = {4: 0.35, 8: 0.4}
"""The same of a single vector of fewer floats."""

_TALLEST = 8


def cost(tile: Tile) -> float:
    """Return what multiplying a tile by an element of a matrix costs, about two nanoseconds each.

    Example:
        >>> cost(Tile(16, 4)), cost(Tile(16, 1, 4))
        (0.94, 0.94)
    """
    return _COST_NARROW.get(tile.width * tile.down, _COST[tile.vectors - 1])


def items_in_panels(items: int, features: int, room: int) -> Tile:
    """Return the tile that costs least where items are copied into panels that it covers.

    Args:
        items: How many.
        features: Of each.
        room: Bytes that the activations of a tile should take at most.

    Example:
        >>> items_in_panels(70, 1_000, 1 << 20).width
        80
    """
    tiles = [*(Tile(narrow, 1) for narrow in _COST_NARROW)]
    tiles += [Tile(LANES, across) for across in range(1, len(_COST) + 1)]
    few = [tile for tile in tiles if 4 * tile.width * features <= room] or tiles[:1]
    return min(few, key=lambda tile: (math.ceil(items / tile.width) * cost(tile), tile.width))


def panels(items: int, features: int, tile: Tile) -> torch.Tensor:
    """Return, of each tile, the bytes from the first input, from the first output, and its tail.

    Example:
        >>> panels(70, 1_000, Tile(16, 3)).tolist()
        [[0, 0, 128], [192000, 192, 128]]
    """
    starts = 4 * tile.width * torch.arange(math.ceil(items / tile.width))
    return _table(starts * features, starts, tile)


def whole_vectors(items: int) -> int:
    """Return the next number of items that are whole vectors.

    Example:
        >>> [whole_vectors(items) for items in (2, 3, 5, 10, 33)]
        [2, 4, 8, 16, 48]
    """
    vector = min(LANES, 1 << (items - 1).bit_length())
    return vector * math.ceil(items / vector)


def items_as_they_lie(items: int, features: int, room: int) -> Tile:
    """Return the tile that costs least where items are read from where they are, two at least.

    Arguments as those of :func:`items_in_panels`.

    Example:
        >>> items_as_they_lie(70, 1_000, 1 << 20)
        Tile(lanes=16, across=5, down=1)
        >>> items_as_they_lie(5, 1_000, 1 << 20)
        Tile(lanes=4, across=2, down=1)
    """
    lanes = min(LANES, 1 << (items.bit_length() - 1))
    vectors = math.ceil(items / lanes)
    tiles = [Tile(lanes, across) for across in range(1, min(vectors, len(_COST)) + 1)]
    few = [tile for tile in tiles if 4 * tile.width * features <= room] or tiles[:1]
    return min(few, key=lambda tile: (math.ceil(vectors / tile.across) * cost(tile), tile.width))


def places(items: int, tile: Tile) -> torch.Tensor:
    """Return what :func:`panels` does for items that are read from where they are.

    No tile reaches beyond the items. The last begins earlier where too few vectors are left for it,
    and its last vector where too few items are left for that.

    Example:
        >>> places(70, Tile(16, 3)).tolist()
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


def fitting(lines: int, columns: int) -> Tile:
    """Return the tile that covers an image by the fewest vectors, and the largest among such.

    Example:
        >>> fitting(28, 28)
        Tile(lanes=16, across=1, down=8)
    """
    shapes = [
        (lanes, across, down)
        for lanes in (4, 8, 16)
        for across in (1, 2, 4, 8)
        for down in (1, 2, 4, 8)
        if across * down <= _TALLEST and down <= lines
        if lanes * across <= columns or (lanes, across) == (4, 1)
    ]

    def work(shape: tuple[int, int, int]) -> tuple[float, int]:
        lanes, across, down = shape
        vectors = math.ceil(columns / (lanes * across)) * across * math.ceil(lines / down) * down
        tiles = vectors / (across * down)
        return vectors + 2 * tiles, -lanes

    return Tile(*min(shapes, key=work))


def covering(lines: int, columns: int, tile: Tile, line: int, room: int) -> torch.Tensor:
    """Return what :func:`panels` does for the tiles of an image, the last of them shifted back.

    Args:
        lines: Of the image.
        columns: Of the image.
        tile: What covers it.
        line: Floats between its lines among the inputs.
        room: Floats between its lines among the outputs.

    Example:
        >>> covering(3, 10, Tile(8, 1, 2), 12, 10).tolist()
        [[0, 0, 0], [8, 8, 0], [48, 40, 0], [56, 48, 0]]
    """
    down = _starts(lines, tile.down)[:, None]
    along = _starts(columns, tile.width)
    inputs, outputs = (4 * (down * step + along).flatten() for step in (line, room))
    return _table(inputs, outputs, tile)


def _starts(length: int, step: int) -> torch.Tensor:
    return torch.arange(0, length, step).clamp(max=max(0, length - step))
