"""Where the non-zero elements of a tensor are: several ways to write it down, and back.

An encoding turns the positions of the non-zero elements, counted through the tensor row by row,
into a few arrays of whole numbers. What is read back may come from anyone: every array is checked
before it is used, and memory beyond the arrays themselves is that of a block of positions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ENCODINGS", "BadIndexError", "Encoding", "Parts", "Positions"]

Positions = npt.NDArray[np.int64]
"""Strictly ascending positions of elements."""

Parts = Mapping[str, npt.NDArray[Any]]
"""The arrays of one index, by name."""

_BLOCK = 1 << 20
"""Positions, bits or bytes that are decoded at once."""


class BadIndexError(ValueError):
    """An index contradicts itself or its tensor."""


class Encoding(Protocol):
    """One way to write down positions."""

    parts: ClassVar[Mapping[str, str]]
    """What its arrays are called, and of which type each is, as in "uint8"."""

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that say these positions of a tensor of that shape."""
        ...

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether it can say the positions of a tensor of that shape."""
        ...

    def size(self, kept: int, shape: Sequence[int]) -> int:
        """Return how many bytes the arrays take for so many positions; at least, if it depends."""
        ...

    def decode(self, parts: Parts, shape: Sequence[int], kept: int) -> Iterator[Positions]:
        """Yield the positions, ascending, block by block.

        Args:
            parts: The arrays, of the right types.
            shape: Of the tensor.
            kept: How many positions there must be.

        Raises:
            BadIndexError: The arrays do not say so many positions within the tensor.
        """
        ...


class Bitmap:
    """A bit for each element, that of the first in the lowest bit of the first byte."""

    parts: ClassVar[Mapping[str, str]] = {"bitmap": "uint8"}

    def fits(self, shape: Sequence[int]) -> bool:
        """Return True."""
        return True

    def size(self, kept: int, shape: Sequence[int]) -> int:
        """Return an eighth of the elements, rounded up."""
        return -(-math.prod(shape) // 8)

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return the bits, the rest of the last byte 0."""
        bits = np.zeros(math.prod(shape), dtype=np.bool_)
        bits[positions] = True
        return {"bitmap": np.packbits(bits, bitorder="little")}

    def decode(self, parts: Parts, shape: Sequence[int], kept: int) -> Iterator[Positions]:
        """Yield the positions of the ones."""
        packed, numel, found = parts["bitmap"], math.prod(shape), 0
        if packed.shape != (-(-numel // 8),):
            raise BadIndexError(
                f"its bitmap must have {-(-numel // 8):,} bytes for {numel:,} elements, but has "
                f"{packed.size:,}"
            )
        for begin in range(0, len(packed), _BLOCK // 8):
            bits = np.unpackbits(packed[begin : begin + _BLOCK // 8], bitorder="little")
            positions = np.flatnonzero(bits) + 8 * begin
            found += len(positions)
            if len(positions) and positions[-1] >= numel:
                raise BadIndexError(f"its bitmap goes beyond its {numel:,} elements")
            if found > kept:
                break
            yield positions
        _check_count(found, kept)


class Columns:
    """As in CSR: the column of each non-zero element in 16 bits, and where each row begins.

    The first dimension are the rows, all others together the columns. It is read without decoding,
    as it lies in the file.
    """

    parts: ClassVar[Mapping[str, str]] = {"columns": "uint16", "rows": "uint32"}

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether 16 bits are enough for a column, and 32 for a row's beginning."""
        return len(shape) > 0 and math.prod(shape[1:]) <= 1 << 16 and math.prod(shape) < 1 << 32

    def size(self, kept: int, shape: Sequence[int]) -> int:
        """Return 2 bytes for each position and 4 for each row, and 4 more."""
        return 2 * kept + 4 * (shape[0] + 1)

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return columns and row pointers."""
        width = math.prod(shape[1:])
        rows = np.searchsorted(positions, np.arange(shape[0] + 1, dtype=np.int64) * width)
        return {"columns": (positions % width).astype(np.uint16), "rows": rows.astype(np.uint32)}

    def decode(self, parts: Parts, shape: Sequence[int], kept: int) -> Iterator[Positions]:
        """Yield what columns and row pointers say."""
        columns, pointers, width = parts["columns"], parts["rows"], math.prod(shape[1:])
        if columns.shape != (kept,) or pointers.shape != (shape[0] + 1,):
            raise BadIndexError(
                f"it must have {kept:,} columns and {shape[0] + 1:,} row pointers, but has "
                f"{columns.size:,} and {pointers.size:,}"
            )
        pointers = pointers.astype(np.int64)
        if pointers[0] != 0 or pointers[-1] != kept or (pointers[1:] < pointers[:-1]).any():
            raise BadIndexError(f"its row pointers do not ascend from 0 to {kept:,}")
        last = -1
        for begin in range(0, kept, _BLOCK):
            numbers = np.arange(begin, min(kept, begin + _BLOCK))
            rows = np.searchsorted(pointers, numbers, side="right") - 1
            inside = columns[begin : begin + _BLOCK].astype(np.int64)
            if (inside >= width).any():
                raise BadIndexError(f"it has columns beyond the {width:,} of its rows")
            positions = rows * width + inside
            if positions[0] <= last or (positions[1:] <= positions[:-1]).any():
                raise BadIndexError("its columns do not ascend within each row")
            last = int(positions[-1])
            yield positions


class Gaps:
    """How many zeros stand before each non-zero element, a byte each, in a zlib stream.

    A byte of 0 to 254 stands for as many zeros and then an element that is not zero, 255 for 255
    zeros and nothing. What follows the last non-zero element is not said. Where the non-zero
    elements are scattered at random this stream is, bit for bit, as good as any: the number of
    zeros forgets how many there were already, and Huffman's code is near the entropy.
    """

    parts: ClassVar[Mapping[str, str]] = {"gaps": "uint8"}

    def fits(self, shape: Sequence[int]) -> bool:
        """Return True."""
        return True

    def size(self, kept: int, shape: Sequence[int]) -> int:
        """Return what an empty stream takes."""
        return 8

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return the stream."""
        zeros = np.diff(positions, prepend=-1) - 1
        skips, rest = np.divmod(zeros, 255)
        symbols = np.full(len(positions) + int(skips.sum()), 255, dtype=np.uint8)
        symbols[np.cumsum(skips + 1) - 1] = rest
        return {"gaps": np.frombuffer(bytearray(_deflated(symbols)), dtype=np.uint8)}

    def decode(self, parts: Parts, shape: Sequence[int], kept: int) -> Iterator[Positions]:
        """Yield what the stream says; it ends by itself, whatever the stream would swell to."""
        numel, passed, found = math.prod(shape), 0, 0
        for symbols in _inflated(parts["gaps"]):
            is_element = symbols != 255
            # Every byte passes an element at least, so that no stream outlasts the tensor.
            after = passed + np.cumsum(symbols.astype(np.int64) + is_element)
            passed = int(after[-1])
            if passed > numel:
                raise BadIndexError(f"its gaps go beyond its {numel:,} elements")
            positions = after[is_element] - 1
            found += len(positions)
            if found > kept:
                break
            yield positions
        _check_count(found, kept)


ENCODINGS: Mapping[str, Encoding] = {"gaps": Gaps(), "columns": Columns(), "bitmap": Bitmap()}
"""All encodings, by the name that a file calls them, that first which mostly is the smallest."""


def _deflated(symbols: npt.NDArray[np.uint8]) -> bytes:
    """Compress, by the strategy that does best on a sample."""
    # Huffman's code alone suits elements scattered at random; repetitions, those in rows or blocks.
    sample = symbols[: 1 << 16]
    strategy = min(
        (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY),
        key=lambda strategy: len(_compressed(sample, strategy)),
    )
    return _compressed(symbols, strategy)


def _compressed(symbols: npt.NDArray[np.uint8], strategy: int) -> bytes:
    deflating = zlib.compressobj(level=6, memLevel=9, strategy=strategy)
    return deflating.compress(symbols.data) + deflating.flush()


def _inflated(stream: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield what a zlib stream holds, block by block, however much it swells."""
    inflating = zlib.decompressobj()
    try:
        for begin in range(0, len(stream), _BLOCK):
            rest = stream[begin : begin + _BLOCK].tobytes()
            while rest:
                if inflating.eof:
                    raise BadIndexError("its gaps go on after the end of their zlib stream")
                symbols = inflating.decompress(rest, _BLOCK)
                rest = inflating.unconsumed_tail or inflating.unused_data
                if symbols:
                    yield np.frombuffer(symbols, dtype=np.uint8)
    except zlib.error as error:
        raise BadIndexError(f"its gaps are no zlib stream ({error})") from error
    if not inflating.eof:
        raise BadIndexError("its gaps are cut short")


def _check_count(found: int, kept: int) -> None:
    if found != kept:
        more = " or more" if found > kept else ""
        raise BadIndexError(f"its index says {found:,}{more} elements, but it has {kept:,} values")
