"""Encodings: limits of shapes and sizes, and the choice of the compression."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from prunus.export.encodings import ENCODINGS, InconsistencyError, Index


@pytest.mark.parametrize(
    ("shape", "supported"),
    [
        ((), False),  # without rows
        ((1,), True),
        ((3, 1 << 16), True),  # the last column is 65,535, the largest number of 16 bits
        ((3, 1 << 8, 1 << 8), True),
        ((3, (1 << 16) + 1), False),
        (((1 << 16) - 1, 1 << 16), True),
        ((1 << 16, 1 << 16), False),  # 2^32 elements
        (((1 << 32) - 1,), True),
        ((1 << 32,), False),
    ],
)
def test_columns_need_16_bits_and_row_pointers_32(shape: tuple[int, ...], supported: bool) -> None:
    assert ENCODINGS["columns"].supports(shape) == supported
    assert ENCODINGS["bitmap"].supports(shape)
    assert ENCODINGS["gaps"].supports(shape)


def test_repeated_columns_and_rows_out_of_order_are_rejected() -> None:
    rows = np.array([0, 2], dtype=np.uint32)
    for columns in ([1, 1], [2, 1]):
        index: Index = {"columns": np.array(columns, dtype=np.uint16), "rows": rows}
        with pytest.raises(InconsistencyError, match="columns do not ascend within each row"):
            list(ENCODINGS["columns"].decode(index, (1, 3), 2))


def test_repetitive_and_scattered_gaps_are_each_compressed_by_the_better_strategy() -> None:
    random = np.random.default_rng(0)
    regular = np.arange(0, 60_000, 3)
    scattered = np.flatnonzero(random.random(60_000) < 0.05)
    for positions, strategy in (
        (regular, zlib.Z_DEFAULT_STRATEGY),
        (scattered, zlib.Z_HUFFMAN_ONLY),
    ):
        gaps = (np.diff(positions, prepend=-1) - 1).astype(np.uint8).tobytes()
        expected = zlib.compressobj(level=6, memLevel=9, strategy=strategy)
        stream = ENCODINGS["gaps"].encode(positions, (60_000,))["gaps"].tobytes()
        assert stream == expected.compress(gaps) + expected.flush()
