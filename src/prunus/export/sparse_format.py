"""The sparse file format: version, metadata, supported types and the lower bound of a file's size.

The format is specified in ``docs/sparse-files.md``.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from safetensors.torch import save

from prunus.errors import listing
from prunus.export.encodings import ENCODINGS, InconsistencyError

__all__ = [
    "BIT_TYPES",
    "COMPACT_KEY",
    "CSR_KEY",
    "DENSE",
    "DTYPES",
    "METADATA_KEY",
    "RECIPE_KEY",
    "RESERVED_KEYS",
    "RESTORED_TYPES",
    "SCALES",
    "SCALES_VERSION",
    "TIED_KEY",
    "VERSION",
    "Metadata",
    "TensorEntry",
    "TensorInfo",
    "as_bits",
    "can_allocate",
    "encode_tensors",
    "part_key",
    "read_metadata",
    "size_bound",
]

VERSION = 1
"""The version of files without scales."""

SCALES_VERSION = 2
"""The version of files with tensors of 8-bit integers and scales."""

METADATA_KEY = "prunus"
"""The only key of a file's safetensors metadata; its value is a JSON object."""

TIED_KEY = "tied"
"""The key of that object with the first name of each tied tensor, by its other names."""

RESERVED_KEYS = ("sparse", "tensors", TIED_KEY)
"""Keys of that object which the format defines; all others are facts of the caller."""

COMPACT_KEY = "compact"
"""The key of the changes that turn an original model into the compact model of the file."""

CSR_KEY = "csr"
"""The key of the shapes of the tensors that a file holds as compressed sparse rows."""

RECIPE_KEY = "recipe"
"""The key of the name of the recipe that trained the network."""

DENSE = "dense"
"""The encoding of a tensor that is stored with all its elements, without an index."""

SCALES = "scales"
"""The name of the part of a tensor that holds the scales of its rows."""

_MAX_DIMENSIONS = 64

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The torch type of each safetensors type name."""

RESTORED_TYPES = ("F64", "F32", "F16", "BF16")
"""The types of tensors that may be stored as 8-bit integers with scales."""

BIT_TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}
"""An integer type that torch can index, by its size in bytes: elements are compared and moved as
bits, so that NaN payloads and -0.0 are kept."""


@dataclass(frozen=True)
class TensorInfo:
    """How one tensor is stored in a file.

    Attributes:
        name: The tensor's name.
        shape: The tensor's shape.
        dtype: The tensor's type.
        stored_dtype: The type of its elements in the file: int8 if the tensor is stored with scales
            of its rows, else ``dtype``.
        encoding: The encoding of the positions of its stored elements: "bitmap", "columns" or
            "gaps"; "dense" if all elements are stored; "csr" in files of compressed rows.
        stored_elements: The number of elements in the file.
        stored_bytes: The bytes of these elements, their index and scales, without the file's
            header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored_dtype: torch.dtype
    encoding: str
    stored_elements: int
    stored_bytes: int

    @property
    def numel(self) -> int:
        """The number of elements of the tensor, zeros included."""
        return math.prod(self.shape)

    @property
    def has_scales(self) -> bool:
        """Whether it is stored as 8-bit integers with a scale for each row."""
        return self.stored_dtype != self.dtype

    @property
    def row_size(self) -> int:
        """The number of elements of each row: those with the same first index."""
        return math.prod(self.shape[1:])

    @property
    def stored_as(self) -> str:
        """The encoding, and the type of the stored elements if it is not the tensor's."""
        return f"{self.encoding}, int8" if self.has_scales else self.encoding

    @property
    def dense_bytes(self) -> int:
        """The bytes of all elements, which the tensor takes in memory."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorEntry:
    """The metadata of one tensor that is stored without its zeros or with scales.

    Attributes:
        shape: The tensor's shape.
        encoding: The name of its encoding, a key of :data:`~prunus.export.encodings.ENCODINGS`, or
            :data:`DENSE`.
        separator: One or more slashes between the tensor's name and the name of a part.
        restored: The type of the tensor if it is stored with scales, else None.
    """

    shape: tuple[int, ...]
    encoding: str
    separator: str
    restored: torch.dtype | None = None

    @property
    def part_types(self) -> dict[str, str]:
        """The type of each part: of the index and the scales."""
        index = {} if self.encoding == DENSE else ENCODINGS[self.encoding].parts
        return {**index, **({} if self.restored is None else {SCALES: "float32"})}

    def part_keys(self, name: str) -> dict[str, str]:
        """Return the name under which the file stores each part."""
        return {part: part_key(name, self.separator, part) for part in self.part_types}


@dataclass(frozen=True)
class Metadata:
    """The parsed metadata of a file.

    Attributes:
        entries: The entry of each tensor that is stored without its zeros or with scales, by its
            name.
        tied: The first name of each tied tensor, by its other names.
        facts: All other keys, which the caller wrote.
    """

    entries: Mapping[str, TensorEntry]
    tied: Mapping[str, str]
    facts: Mapping[str, Any]


def part_key(name: str, separator: str, part: str) -> str:
    """Return the name under which a file stores one part of a tensor."""
    return f"{name}{separator}{part}"


def read_metadata(metadata: Mapping[str, str]) -> Metadata:
    """Parse the safetensors metadata of a file.

    Files are untrusted: every value is checked before use.

    Args:
        metadata: The metadata of the file's header.

    Returns:
        The parsed metadata; of an ordinary safetensors file without entries and tied tensors.

    Raises:
        InconsistencyError: The metadata are not valid, or are of another version of the format.
    """
    try:
        content = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise InconsistencyError(f"the metadata are not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InconsistencyError("the metadata are not a JSON object")
    if "sparse" not in content:
        return Metadata({}, {}, content)
    version = content.pop("sparse")
    if version not in (VERSION, SCALES_VERSION):
        raise InconsistencyError(
            f"the file has version {str(version)[:20]} of the format, but this prunus reads the "
            f"versions {VERSION} and {SCALES_VERSION}"
        )
    tensors, tied = content.pop("tensors", None), content.pop(TIED_KEY, {})
    for value, key in ((tensors, "tensors"), (tied, TIED_KEY)):
        if not isinstance(value, dict):
            raise InconsistencyError(f"the metadata have no object {key!r}")
    if not all(isinstance(name, str) for name in tied.values()):
        raise InconsistencyError("the metadata tie tensors to values that are not names")
    may_scale = version == SCALES_VERSION
    entries = {name: _read_entry(name, entry, may_scale) for name, entry in tensors.items()}
    return Metadata(entries, tied, content)


def _read_entry(name: str, entry: Any, may_scale: bool) -> TensorEntry:
    entry = entry if isinstance(entry, dict) else {}
    has_scales = may_scale and "type" in entry
    if has_scales and entry["type"] not in RESTORED_TYPES:
        known = listing(list(RESTORED_TYPES))
        raise InconsistencyError(
            f"the type of {name} must be one of {known}, but is {str(entry['type'])[:20]!r}"
        )
    shape = entry.get("shape")
    is_dense = has_scales and "index" not in entry
    encoding = DENSE if is_dense else entry.get("index")
    separator = entry.get("slash", "/")
    if (
        not isinstance(shape, list)
        or not shape
        or not all(type(size) is int and size >= 0 for size in shape)
        or not can_allocate(shape)
    ):
        raise InconsistencyError(
            f"the shape of {name} must be a list of 1 to {_MAX_DIMENSIONS} sizes of at least 0, "
            f"whose product is below 2**60 where 0 counts as 1, but is {reprlib.repr(shape)}"
        )
    if not is_dense and (not isinstance(encoding, str) or encoding not in ENCODINGS):
        known = listing(list(ENCODINGS))
        raise InconsistencyError(
            f"the index of {name} must be one of {known}, but is {str(encoding)[:20]!r}"
        )
    if not isinstance(separator, str) or not separator or separator.strip("/"):
        raise InconsistencyError(
            f"the slash of {name} must be one or more '/', but is {str(separator)[:20]!r}"
        )
    restored = DTYPES[entry["type"]] if has_scales else None
    return TensorEntry(tuple(shape), encoding, separator, restored)


def can_allocate(shape: Sequence[int]) -> bool:
    """Return whether torch can count the bytes of a tensor of this shape.

    Empty dimensions count as 1.

    Example:
        >>> can_allocate([0, 1 << 59]), can_allocate([0, 1 << 60])
        (True, False)
    """
    if len(shape) > _MAX_DIMENSIONS or any(size >= 1 << 63 for size in shape):
        return False
    return math.prod(max(1, size) for size in shape) < 1 << 60


def encode_tensors(tensors: dict[str, torch.Tensor], metadata: str) -> bytes:
    """Return the content of a safetensors file.

    Args:
        tensors: The tensors by name, none of which share memory.
        metadata: The metadata, as the text of a JSON object.
    """
    # One key of metadata: with several, safetensors writes them in a random order.
    return save(tensors, {METADATA_KEY: metadata})


def as_bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor's elements as a vector of integers with the same bits."""
    bits: npt.NDArray[Any] = tensor.reshape(-1).view(BIT_TYPES[tensor.dtype.itemsize]).numpy()
    return bits


def size_bound(numel: int, count: int, bits: int) -> float:
    """Return a lower bound of the bytes of a tensor whose zeros are at random positions.

    The bound is count · (bits + H₂(p) / p) / 8, where p = count / numel and H₂(p) is the binary
    entropy in bits: the size of the values, and of the information where they are.

    Args:
        numel: The number of elements.
        count: The number of elements that are not zero.
        bits: The size of one element in bits.

    Source:
        Shannon, A Mathematical Theory of Communication, 1948, theorem 9.

    Example:
        >>> round(size_bound(numel=1_000_000, count=100_000, bits=32))
        458624
    """
    if not 0 < count < numel:
        return count * bits / 8
    p = count / numel
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    return (count * bits + numel * entropy) / 8
