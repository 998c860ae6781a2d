"""Encodings of the positions of the non-zero elements of a tensor.

An encoding stores the positions, counted over all elements row by row, as a few arrays of
integers: the index of the tensor. Files are untrusted: every value is checked before use. Beside
the arrays, decoding takes only the memory of one block of positions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ENCODINGS", "Encoding", "InconsistencyError", "Index", "Positions"]

Positions = npt.NDArray[np.int64]
"""Strictly ascending positions of elements."""

Index = Mapping[str, npt.NDArray[Any]]
"""The arrays of an index, by the name of the part."""

_BLOCK = 1 << 20
"""The number of positions, bits or bytes that are decoded at once."""


class InconsistencyError(ValueError):
    """The content of a file contradicts itself; the reader adds the path of the file."""


class Encoding(Protocol):
    """An encoding of positions."""

    parts: ClassVar[Mapping[str, str]]
    """The type of each array of the index, such as "uint8", by the name of the part."""

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return the index of these positions in a tensor of this shape."""
        ...

    def supports(self, shape: Sequence[int]) -> bool:
        """Return whether positions in a tensor of this shape can be encoded."""
        ...

    def size(self, count: int, shape: Sequence[int]) -> int:
        """Return the bytes of an index of that many positions, or a lower bound of them."""
        ...

    def decode(self, index: Index, shape: Sequence[int], count: int) -> Iterator[Positions]:
        """Yield the positions, ascending, in blocks.

        Args:
            index: The arrays, of the types in ``parts``.
            shape: The shape of the tensor.
            count: The expected number of positions.

        Raises:
            InconsistencyError: The arrays do not encode that many positions within the tensor.
        """
        ...


class Bitmap:
    """Encoding by one bit for each element; the first element is the lowest bit of byte 0."""

    parts: ClassVar[Mapping[str, str]] = {"bitmap": "uint8"}

    def supports(self, shape: Sequence[int]) -> bool:
        """Return True: every shape is supported."""
        return True

    def size(self, count: int, shape: Sequence[int]) -> int:
        """Return an eighth of the number of elements, rounded up."""
        return -(-math.prod(shape) // 8)

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return the bitmap; unused bits of the last byte are 0."""
        bits = np.zeros(math.prod(shape), dtype=np.bool_)
        bits[positions] = True
        return {"bitmap": np.packbits(bits, bitorder="little")}

    def decode(self, index: Index, shape: Sequence[int], count: int) -> Iterator[Positions]:
        """Yield the positions of the set bits."""
        packed, numel, found = index["bitmap"], math.prod(shape), 0
        if packed.shape != (-(-numel // 8),):
            raise InconsistencyError(
                f"the bitmap must have {-(-numel // 8):,} bytes for {numel:,} elements, but has "
                f"{packed.size:,}"
            )
        for begin in range(0, len(packed), _BLOCK // 8):
            bits = np.unpackbits(packed[begin : begin + _BLOCK // 8], bitorder="little")
            positions = np.flatnonzero(bits) + 8 * begin
            found += len(positions)
            if len(positions) and positions[-1] >= numel:
                raise InconsistencyError(f"the bitmap has bits set beyond its {numel:,} elements")
            if found > count:
                break
            yield positions
        _check_count(found, count)


class Columns:
    """Encoding by the column of each element in 16 bits and the beginning of each row, as in CSR.

    The rows are the first dimension of the tensor; all others are flattened into the columns. The
    index can be used without decoding.
    """

    parts: ClassVar[Mapping[str, str]] = {"columns": "uint16", "rows": "uint32"}

    def supports(self, shape: Sequence[int]) -> bool:
        """Return whether a column fits into 16 bits and the beginning of a row into 32."""
        return len(shape) > 0 and math.prod(shape[1:]) <= 1 << 16 and math.prod(shape) < 1 << 32

    def size(self, count: int, shape: Sequence[int]) -> int:
        """Return 2 bytes for each position and 4 for each row and for the end."""
        return 2 * count + 4 * (shape[0] + 1)

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return columns and row pointers."""
        width = math.prod(shape[1:])
        rows = np.searchsorted(positions, np.arange(shape[0] + 1, dtype=np.int64) * width)
        return {"columns": (positions % width).astype(np.uint16), "rows": rows.astype(np.uint32)}

    def decode(self, index: Index, shape: Sequence[int], count: int) -> Iterator[Positions]:
        """Yield the positions of the columns."""
        columns, pointers, width = index["columns"], index["rows"], math.prod(shape[1:])
        if columns.shape != (count,) or pointers.shape != (shape[0] + 1,):
            raise InconsistencyError(
                f"the index must have {count:,} columns and {shape[0] + 1:,} row pointers, but has "
                f"{columns.size:,} and {pointers.size:,}"
            )
        pointers = pointers.astype(np.int64)
        if pointers[0] != 0 or pointers[-1] != count or (pointers[1:] < pointers[:-1]).any():
            raise InconsistencyError(f"the row pointers do not ascend from 0 to {count:,}")
        last = -1
        for begin in range(0, count, _BLOCK):
            numbers = np.arange(begin, min(count, begin + _BLOCK))
            rows = np.searchsorted(pointers, numbers, side="right") - 1
            offsets = columns[begin : begin + _BLOCK].astype(np.int64)
            if (offsets >= width).any():
                raise InconsistencyError(f"a column is beyond the row width of {width:,}")
            positions = rows * width + offsets
            if positions[0] <= last or (positions[1:] <= positions[:-1]).any():
                raise InconsistencyError("the columns do not ascend within each row")
            last = int(positions[-1])
            yield positions


class Gaps:
    """Encoding by the number of zeros before each element, one byte each, in a zlib stream.

    A byte from 0 to 254 is that number of zeros followed by an element; 255 is 255 zeros without
    an element. Zeros after the last element are not encoded. For elements at random positions the
    stream is close to the smallest possible: the number of zeros before an element does not depend
    on the earlier ones, and Huffman coding comes close to the entropy of independent symbols.
    """

    parts: ClassVar[Mapping[str, str]] = {"gaps": "uint8"}

    def supports(self, shape: Sequence[int]) -> bool:
        """Return True: every shape is supported."""
        return True

    def size(self, count: int, shape: Sequence[int]) -> int:
        """Return the size of an empty stream, which is a lower bound."""
        return 8

    def encode(self, positions: Positions, shape: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Return the stream."""
        zeros = np.diff(positions, prepend=-1) - 1
        skips, rest = np.divmod(zeros, 255)
        symbols = np.full(len(positions) + int(skips.sum()), 255, dtype=np.uint8)
        symbols[np.cumsum(skips + 1) - 1] = rest
        return {"gaps": np.frombuffer(bytearray(_compress(symbols)), dtype=np.uint8)}

    def decode(self, index: Index, shape: Sequence[int], count: int) -> Iterator[Positions]:
        """Yield the positions; decoding stops at the tensor's end, however long the stream is."""
        numel, passed, found = math.prod(shape), 0, 0
        for symbols in _decompress(index["gaps"]):
            is_element = symbols != 255
            # Every byte passes at least one element, so that a decompression bomb is noticed after
            # at most as many bytes as the tensor has elements.
            ends = passed + np.cumsum(symbols.astype(np.int64) + is_element)
            passed = int(ends[-1])
            if passed > numel:
                raise InconsistencyError(f"the gaps extend beyond the {numel:,} elements")
            positions = ends[is_element] - 1
            found += len(positions)
            if found > count:
                break
            yield positions
        _check_count(found, count)


ENCODINGS: Mapping[str, Encoding] = {"gaps": Gaps(), "columns": Columns(), "bitmap": Bitmap()}
"""All encodings by their names in files, first the one that is most often the smallest."""


def _compress(symbols: npt.NDArray[np.uint8]) -> bytes:
    """Compress bytes by the strategy that is best on a sample of them."""
    # Huffman coding alone suits elements at random positions; matching of repetitions suits rows
    # and blocks.
    sample = symbols[: 1 << 16]
    strategy = min(
        (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY),
        key=lambda strategy: len(_compress_by(strategy, sample)),
    )
    return _compress_by(strategy, symbols)


def _compress_by(strategy: int, symbols: npt.NDArray[np.uint8]) -> bytes:
    compressor = zlib.compressobj(level=6, memLevel=9, strategy=strategy)
    return compressor.compress(symbols.data) + compressor.flush()


def _decompress(stream: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the content of a zlib stream in blocks of bounded size, also of decompression bombs."""
    decompressor = zlib.decompressobj()
    try:
        for begin in range(0, len(stream), _BLOCK):
            rest = stream[begin : begin + _BLOCK].tobytes()
            while rest:
                if decompressor.eof:
                    raise InconsistencyError("the gaps continue after the end of their zlib stream")
                symbols = decompressor.decompress(rest, _BLOCK)
                rest = decompressor.unconsumed_tail or decompressor.unused_data
                if symbols:
                    yield np.frombuffer(symbols, dtype=np.uint8)
    except zlib.error as error:
        raise InconsistencyError(f"the gaps are not a zlib stream ({error})") from error
    if not decompressor.eof:
        raise InconsistencyError("the gaps are truncated")


def _check_count(found: int, count: int) -> None:
    if found != count:
        more = " or more" if found > count else ""
        raise InconsistencyError(
            f"the index has {found:,}{more} positions, but there are {count:,} values"
        )
