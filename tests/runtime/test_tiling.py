"""Tests of tables of tiles: complete coverage, and no access outside."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.runtime.kernels.tiles import Tile
from prunus.runtime.tiling import (
    image_table,
    in_place_table,
    panel_table,
    round_up_to_vectors,
    tile_for_image,
    tile_for_panels,
    tile_in_place,
)


def vectors(table: torch.Tensor, column: int, tile: Tile) -> list[range]:
    """Return the floats that each vector of one line of each tile covers."""
    found = []
    for row in table.tolist():
        start, tail = row[column], row[2]
        steps = [4 * tile.lanes * i for i in range(tile.across - 1)] + [tail]
        assert all(at % 4 == 0 for at in (start, tail))
        found += [range((start + s) // 4, (start + s) // 4 + tile.lanes) for s in steps]
    return found


@given(
    items=st.integers(2, 700),
    features=st.integers(1, 20_000),
    max_bytes=st.sampled_from([1 << 12, 1 << 20, 1 << 21]),
)
def test_tiles_cover_every_item_in_place_with_few_overlaps(
    items: int, features: int, max_bytes: int
) -> None:
    tile = tile_in_place(items, features, max_bytes)
    table = in_place_table(items, tile)
    assert torch.equal(table[:, 0], table[:, 1])
    covered = vectors(table, 0, tile)
    assert {item for vector in covered for item in vector} == set(range(items))
    # All vectors but the last are aligned, so that only one of each line may take two cache lines.
    assert all(vector.start % tile.lanes == 0 for vector in covered[:-1])
    assert len(covered) < items / tile.lanes + tile.across


@given(
    items=st.integers(1, 700),
    features=st.integers(1, 3_000),
    max_bytes=st.sampled_from([1 << 12, 1 << 20]),
)
def test_panels_contain_every_item_exactly_once(items: int, features: int, max_bytes: int) -> None:
    tile = tile_for_panels(items, features, max_bytes)
    table = panel_table(items, features, tile)
    assert [v.start for v in vectors(table, 1, tile)] == list(
        range(0, len(table) * tile.width, tile.lanes)
    )
    assert items <= len(table) * tile.width < items + tile.width
    assert table[:, 0].tolist() == [i * 4 * tile.width * features for i in range(len(table))]


@given(lines=st.integers(1, 40), columns=st.integers(4, 70), wider=st.integers(0, 9))
def test_tiles_cover_every_pixel_within_the_image(lines: int, columns: int, wider: int) -> None:
    tile = tile_for_image(lines, columns)
    line, room = columns + wider, columns
    found = np.zeros((lines, columns), dtype=bool)
    for first, second, tail in image_table(
        lines, columns, tile, input_line=line, output_line=room
    ).tolist():
        row, column = divmod(second // 4, room)
        assert first == 4 * (row * line + column)
        assert tail == 4 * (tile.width - tile.lanes)
        assert row + tile.down <= lines
        assert column + tile.width <= columns
        found[row : row + tile.down, column : column + tile.width] = True
    assert found.all()


@given(items=st.integers(1, 300))
def test_round_up_to_vectors_rounds_up_to_full_vectors(items: int) -> None:
    whole = round_up_to_vectors(items)
    assert items <= whole < items + 16
    assert whole % 16 == 0 or whole in (1, 2, 4, 8)
