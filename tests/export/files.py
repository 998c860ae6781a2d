"""Sparse files for tests: tensors to store, a second reader, and changes to headers and parts."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunus import SparseFileError, load_sparse, save_sparse
from prunus.export.encodings import ENCODINGS

__all__ = [
    "CHOICES",
    "DTYPES",
    "assert_rejected",
    "change_metadata",
    "read_by_specification",
    "replace_parts",
    "scattered",
    "write_example",
]

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int8,
    torch.uint16,
    torch.bool,
    torch.complex64,
)

CHOICES = ("smallest", *ENCODINGS)
"""All values of the argument ``encoding``."""


def scattered(
    shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int
) -> torch.Tensor:
    """Return a tensor of random bits, whose elements are kept with the probability ``density``."""
    generator = torch.Generator().manual_seed(seed)
    numel = math.prod(shape)
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(
        high, (numel * dtype.itemsize,), generator=generator, dtype=torch.uint8
    ).view(dtype)
    kept = torch.rand(numel, generator=generator) < density
    masked = data.view(torch.uint8).view(-1, dtype.itemsize) * kept[:, None]
    return masked.reshape(-1).view(dtype).reshape(shape)


def read_by_specification(path: Path) -> dict[str, torch.Tensor]:
    """Read a sparse file by ``docs/sparse-files.md``, element by element, without prunus."""
    state = load_file(path)
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(json.loads(file.read(size))["__metadata__"]["prunus"])
    for name, entry in metadata["tensors"].items():
        values, prefix = state.pop(name), name + entry.get("slash", "/")
        if "type" in entry:
            assert metadata["sparse"] == 2
            state[name] = _scaled(values, entry, prefix, state)
            continue
        parts = {part: state.pop(prefix + part).tolist() for part in _parts(entry["index"])}
        numel, itemsize = math.prod(entry["shape"]), values.dtype.itemsize
        data = torch.zeros(numel * itemsize, dtype=torch.uint8)
        rows = data.view(-1, itemsize) if numel else data
        positions = _positions(entry, parts)
        elements = values.view(torch.uint8).view(-1, itemsize)
        for position, element in zip(positions, elements, strict=True):
            rows[position] = element
        state[name] = data.view(values.dtype).reshape(entry["shape"])
    tied = metadata.get("tied", {})
    return state | {alias: state[name] for alias, name in tied.items()}


def _scaled(
    values: torch.Tensor, entry: dict[str, Any], prefix: str, state: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Return a tensor of integers with scales, in its own type; its parts leave the state."""
    scales, integers = state.pop(prefix + "scales"), values.reshape(-1)
    if "index" in entry:
        parts = {part: state.pop(prefix + part).tolist() for part in _parts(entry["index"])}
        integers = torch.zeros(math.prod(entry["shape"]), dtype=torch.int8)
        for position, element in zip(_positions(entry, parts), values, strict=True):
            integers[position] = element
    dtype = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}.get(
        entry["type"], torch.bfloat16
    )
    wide = torch.float64 if entry["type"] == "F64" else torch.float32
    rows = integers.reshape(entry["shape"][0], -1).to(wide) * scales.to(wide)[:, None]
    return rows.to(dtype).reshape(entry["shape"])


def _parts(index: str) -> tuple[str, ...]:
    return {"bitmap": ("bitmap",), "columns": ("columns", "rows"), "gaps": ("gaps",)}[index]


def _positions(entry: dict[str, Any], parts: dict[str, list[int]]) -> list[int]:
    if entry["index"] == "bitmap":
        numel, packed = math.prod(entry["shape"]), parts["bitmap"]
        return [i for i in range(numel) if packed[i // 8] >> (i % 8) & 1]
    if entry["index"] == "columns":
        width, columns = math.prod(entry["shape"][1:]), parts["columns"]
        bounds = enumerate(itertools.pairwise(parts["rows"]))
        return [row * width + column for row, (a, b) in bounds for column in columns[a:b]]
    positions, position = [], 0
    for byte in zlib.decompress(bytes(parts["gaps"])):
        position += byte
        if byte < 255:
            positions.append(position)
            position += 1
    return positions


def write_example(path: Path, encoding: str = "gaps") -> Path:
    """Write a sparse tensor "a" of shape (100, 50) and a small tensor "b"."""
    weight = scattered((100, 50), 0.1, torch.int8, 1)
    save_sparse({"a": weight, "b": torch.ones(3)}, path, encoding=encoding)
    return path


def split_header(content: bytes) -> tuple[Any, Any, bytes]:
    """Return a file's header, its parsed metadata, and its data."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["prunus"]), content[8 + size :]


def change_metadata(path: Path, **changes: Any) -> None:
    """Replace keys of a file's metadata, and nothing else."""
    header, metadata, data = split_header(path.read_bytes())
    header["__metadata__"] = {"prunus": json.dumps({**metadata, **changes})}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def replace_parts(path: Path, tensors: dict[str, Any]) -> Path:
    """Replace tensors of a file by others, and keep its metadata."""
    _, metadata, _ = split_header(path.read_bytes())
    replaced = load_file(path) | {name: torch.as_tensor(x) for name, x in tensors.items()}
    save_file(replaced, path, {"prunus": json.dumps(metadata)})
    return path


def assert_rejected(path: Path, message: str, **options: Any) -> None:
    """Check that reading a file raises an error with a message that also names the file."""
    with pytest.raises(SparseFileError, match=message) as raised:
        load_sparse(path, **options)
    assert str(path) in str(raised.value)
