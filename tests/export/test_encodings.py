"""Tests of the encodings of positions."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.export.encodings import ENCODINGS, InconsistencyError, Index, Positions

from .files import scattered


def test_encodings_match_the_example_of_the_specification() -> None:
    shape, positions = (8,), np.array([2, 7])
    assert ENCODINGS["bitmap"].encode(positions, shape)["bitmap"].tolist() == [0x84]
    columns = ENCODINGS["columns"].encode(positions, (2, 4))
    assert columns["columns"].tolist() == [2, 3]
    assert columns["rows"].tolist() == [0, 1, 2]
    stream = ENCODINGS["gaps"].encode(positions, shape)["gaps"].tobytes()
    assert zlib.decompress(stream) == bytes([2, 4])


def test_gaps_of_255_zeros_and_more_are_encoded_as_specified() -> None:
    stream = ENCODINGS["gaps"].encode(np.array([254, 510, 1276]), (2000,))["gaps"].tobytes()
    # 254 zeros, an element; 255 zeros, an element; 3 · 255 zeros, an element.
    assert zlib.decompress(stream) == bytes([254, 255, 0, 255, 255, 255, 0])


@pytest.mark.parametrize(
    "positions", [[254], [255], [256], [0, 255, 510, 511], [0, 256, 766, 1999]]
)
def test_gaps_around_255_are_decoded(positions: list[int]) -> None:
    encoding = ENCODINGS["gaps"]
    index = encoding.encode(np.array(positions), (2000,))
    blocks = encoding.decode(index, (2000,), len(positions))
    assert [int(position) for block in blocks for position in block] == positions


@given(
    density=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    name=st.sampled_from(list(ENCODINGS)),
)
def test_predicted_size_is_exact_or_a_lower_bound_for_gaps(
    density: float, shape: tuple[int, int], name: str
) -> None:
    positions = np.flatnonzero(scattered(shape, density, torch.uint8, 0).numpy().reshape(-1))
    predicted = ENCODINGS[name].size(len(positions), shape)
    index = ENCODINGS[name].encode(positions, shape)
    size = sum(part.nbytes for part in index.values())
    assert predicted == size or (name == "gaps" and predicted < size)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decoding_in_blocks_yields_all_positions(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.export.encodings._BLOCK", 64)
    positions = np.flatnonzero(scattered((300, 70), 0.05, torch.uint8, 3).numpy().reshape(-1))
    index = ENCODINGS[encoding].encode(positions, (300, 70))
    blocks = list(ENCODINGS[encoding].decode(index, (300, 70), len(positions)))
    assert len(blocks) > 5
    assert np.concatenate(blocks).tolist() == positions.tolist()


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


@pytest.mark.parametrize("columns", [[0, 2, 1], [1, 1, 2], [0, 1, 2, 2, 3], [0, 1, 3, 2, 4]])
def test_columns_must_ascend_within_and_between_blocks(
    columns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.export.encodings._BLOCK", 3)
    rows = np.array([0, len(columns)], dtype=np.uint32)
    index: Index = {"columns": np.array(columns, dtype=np.uint16), "rows": rows}
    with pytest.raises(InconsistencyError, match="columns do not ascend within each row"):
        list(ENCODINGS["columns"].decode(index, (1, 9), len(columns)))


def test_blocks_of_decoded_gaps_have_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.export.encodings._BLOCK", 64)
    index = ENCODINGS["gaps"].encode(np.arange(1000), (1000,))
    assert index["gaps"].nbytes < 64  # so that one block of the stream holds all positions
    blocks = list(ENCODINGS["gaps"].decode(index, (1000,), 1000))
    assert max(map(len, blocks)) == 64
    assert np.concatenate(blocks).tolist() == list(range(1000))


def stream_of(positions: Positions, strategy: int) -> bytes:
    gaps = (np.diff(positions, prepend=-1) - 1).astype(np.uint8).tobytes()
    compressor = zlib.compressobj(level=6, memLevel=9, strategy=strategy)
    return compressor.compress(gaps) + compressor.flush()


def test_gaps_are_compressed_by_the_strategy_that_is_best_on_the_first_65_536() -> None:
    regular = np.arange(0, 200_000, 3)[: 1 << 16]
    random = np.random.default_rng(0)
    irregular = np.flatnonzero(random.random(2_000_000) < 0.05)[: 1 << 16]
    both = np.concatenate([irregular, irregular[-1] + 1 + regular])
    default, huffman = zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY
    assert len(stream_of(both, default)) < len(stream_of(both, huffman))
    for positions, strategy in ((regular, default), (irregular, huffman), (both, huffman)):
        stream = ENCODINGS["gaps"].encode(positions, (int(positions[-1]) + 1,))["gaps"]
        assert stream.tobytes() == stream_of(positions, strategy)


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ([0, 1, 2], [0, 1, 2, 2], "2 columns and 4 row pointers, but has 3 and 4$"),
        ([0, 1], [0, 1, 2], "2 columns and 4 row pointers"),
        ([0, 1], [1, 1, 2, 2], "do not ascend from 0 to 2"),
        ([0, 1], [0, 1, 1, 1], "do not ascend from 0 to 2"),
        ([0, 1], [0, 2, 1, 2], "do not ascend from 0 to 2"),
        ([0, 4], [0, 1, 2, 2], "a column is beyond the row width of 4"),
    ],
)
def test_columns_and_rows_that_contradict_each_other_are_rejected(
    columns: list[int], rows: list[int], message: str
) -> None:
    index: Index = {
        "columns": np.array(columns, dtype=np.uint16),
        "rows": np.array(rows, dtype=np.uint32),
    }
    with pytest.raises(InconsistencyError, match=message):
        list(ENCODINGS["columns"].decode(index, (3, 4), 2))


@pytest.mark.parametrize(
    ("bitmap", "count", "message"),
    [
        ([3], 2, "must have 2 bytes for 9 elements, but has 1$"),
        ([3, 0, 0], 2, "must have 2 bytes for 9 elements, but has 3$"),
        ([1, 2], 2, "has bits set beyond its 9 elements"),
        ([1, 1], 1, "has 2 or more positions, but there are 1 values"),
        ([1, 1], 3, "has 2 positions, but there are 3 values"),
    ],
)
def test_bitmaps_that_contradict_the_tensor_are_rejected(
    bitmap: list[int], count: int, message: str
) -> None:
    index: Index = {"bitmap": np.array(bitmap, dtype=np.uint8)}
    with pytest.raises(InconsistencyError, match=message):
        list(ENCODINGS["bitmap"].decode(index, (9,), count))
    whole = {"bitmap": np.array([1, 1], dtype=np.uint8)}
    assert np.concatenate(list(ENCODINGS["bitmap"].decode(whole, (9,), 2))).tolist() == [0, 8]


@pytest.mark.parametrize(
    ("stream", "count", "message"),
    [
        (zlib.compress(bytes([0, 1])), 3, "has 2 positions, but there are 3 values"),
        (zlib.compress(bytes([0, 1])), 1, "has 2 or more positions, but there are 1 values"),
        (zlib.compress(bytes([0, 2])), 2, "the gaps extend beyond the 3 elements"),
        (zlib.compress(bytes([0, 1]))[:-1], 2, "the gaps are truncated"),
        (zlib.compress(bytes([0, 1])) + b"x", 2, "the gaps continue after the end of their zlib"),
        (b"", 0, "the gaps are truncated"),
        (b"no stream", 2, "the gaps are not a zlib stream"),
    ],
)
def test_gaps_that_contradict_the_tensor_are_rejected(
    stream: bytes, count: int, message: str
) -> None:
    index: Index = {"gaps": np.frombuffer(stream, dtype=np.uint8)}
    with pytest.raises(InconsistencyError, match=message):
        list(ENCODINGS["gaps"].decode(index, (3,), count))
    whole = {"gaps": np.frombuffer(zlib.compress(bytes([0, 1])), dtype=np.uint8)}
    assert np.concatenate(list(ENCODINGS["gaps"].decode(whole, (3,), 2))).tolist() == [0, 2]
