"""Tests that damaged and malicious files are rejected with one clear error."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunus import PrunusError, load_sparse

from .files import assert_rejected, change_metadata, replace_parts, write_example

CONTRADICTORY: dict[str, tuple[Any, str]] = {
    "version": ({"sparse": 3}, "version 3 of the format, but this prunus reads the versions 1 and"),
    "version of another type": ({"sparse": [1]}, "version"),
    "tensors of another type": ({"tensors": []}, "have no object 'tensors'"),
    "unknown index": (
        {"tensors": {"a": {"shape": [100, 50], "index": "x"}}},
        "the index of a must be one of gaps, columns, bitmap, but is 'x'",
    ),
    "index of another type": (
        {"tensors": {"a": {"shape": [100, 50], "index": []}}},
        "index of a must be .*, but is '\\[\\]'",
    ),
    "no shape": ({"tensors": {"a": {"index": "gaps"}}}, "shape of a must be .*, but is None"),
    "shape without dimensions": (
        {"tensors": {"a": {"shape": [], "index": "gaps"}}},
        "shape of a must be .*, but is \\[\\]",
    ),
    "negative size": (
        {"tensors": {"a": {"shape": [-1, 50], "index": "gaps"}}},
        "shape of a must be .*, but is \\[-1, 50\\]",
    ),
    "size of another type": (
        {"tensors": {"a": {"shape": [True, 50], "index": "gaps"}}},
        "shape of a must be .*, but is \\[True, 50\\]",
    ),
    "no elements": ({"tensors": {"a": {"shape": [0], "index": "gaps"}}}, "cannot have"),
    "too few elements": ({"tensors": {"a": {"shape": [100], "index": "gaps"}}}, "cannot have"),
    "overflowing sizes": (
        {"tensors": {"a": {"shape": [1 << 40, 1 << 40], "index": "gaps"}}},
        "shape of a must be .*, but is \\[1099511627776, 1099511627776\\]",
    ),
    "decompression bomb": (
        {"tensors": {"a": {"shape": [1 << 40], "index": "gaps"}}},
        r"1,099,511,627,788 bytes, above max_bytes, 68,719,476,736: if you trust the file, raise",
    ),
    "shape of another tensor": (
        {"tensors": {"a": {"shape": [10, 50], "index": "gaps"}}},
        "cannot have|gaps extend beyond the 500 elements",
    ),
    "missing part": (
        {"tensors": {"a": {"shape": [100, 50], "index": "bitmap"}}},
        "lacks a/bitmap",
    ),
    "missing tensor": (
        {"tensors": {"c": {"shape": [100, 50], "index": "gaps"}}},
        "lacks c, c/gaps",
    ),
    "missing tensors": (
        {
            "tensors": {
                "c": {"shape": [100, 50], "index": "gaps"},
                "d": {"shape": [100, 50], "index": "bitmap"},
            }
        },
        "lacks c, c/gaps, d, d/bitmap. Restore the file",
    ),
    "invalid slash": (
        {"tensors": {"a": {"shape": [100, 50], "index": "gaps", "slash": "."}}},
        "the slash of a must be one or more '/', but is '.'",
    ),
    "part of two tensors": (
        {
            "tensors": {
                "a": {"shape": [100, 50], "index": "gaps"},
                "a/gaps": {"shape": [100, 50], "index": "gaps"},
            }
        },
        "a/gaps belongs to two",
    ),
    "index of a tensor without one": (
        {"tensors": {"b": {"shape": [100], "index": "gaps"}}},
        "lacks b/gaps",
    ),
    "tie to a missing tensor": ({"tied": {"c": "d"}}, "tie c to d"),
    "circular ties": ({"tied": {"c": "d", "d": "c"}}, "tie c to d, d to c"),
    "tie of a stored tensor": ({"tied": {"b": "a"}}, "tie b to a"),
    "tie to a number": ({"tied": {"c": 3}}, "not names"),
}


@pytest.mark.parametrize(("changes", "message"), CONTRADICTORY.values(), ids=CONTRADICTORY)
def test_contradictory_metadata_is_rejected(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_example(tmp_path / "a")
    change_metadata(path, **changes)
    assert_rejected(path, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "metadata are not valid JSON"),
        ("[" * 100_000, "metadata are not valid JSON"),
        ("3", "metadata are not a JSON object"),
        ("\x00", "metadata are not valid JSON"),
    ],
    ids=["truncated", "deeply nested", "number", "zero byte"],
)
def test_metadata_that_is_not_json_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    save_file({"a": torch.eye(3)}, tmp_path / "a", {"prunus": text})
    assert_rejected(tmp_path / "a", message)


def compress(symbols: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zlib.compress(symbols)), dtype=torch.uint8)


def test_invalid_gaps_are_rejected(tmp_path: Path) -> None:
    path = write_example(tmp_path / "a")
    tensors = load_file(path)
    count, stream = len(tensors["a"]), tensors["a/gaps"]
    for part, message in (
        (stream[:-5], "gaps are truncated"),
        (stream[:0], "gaps are truncated"),
        (torch.cat([stream, stream[:1]]), "continue after the end"),
        (torch.cat([stream, stream]), "continue after the end"),
        (stream.flip(0), "not a zlib stream"),
        (compress(bytes(count - 1)), f"index has {count - 1} positions, but there are {count}"),
        (compress(bytes(count + 1)), f"index has {count + 1} or more positions, but there are"),
        (compress(bytes([255] * 20)), "gaps extend beyond the 5,000 elements"),
        (compress(bytes(count - 1) + b"\xff" * 20), "gaps extend beyond the 5,000 elements"),
        (torch.ones(8, dtype=torch.int8), "a/gaps must be a vector of uint8, but is torch.int8"),
        (stream.reshape(1, -1), "a/gaps must be a vector of uint8, but is .* of shape"),
    ):
        assert_rejected(replace_parts(path, {"a/gaps": part}), message)


@pytest.mark.slow
def test_decompression_bomb_is_rejected(tmp_path: Path) -> None:
    bomb = compress(bytes(1 << 30))  # a gigabyte of zeros, in a megabyte
    assert bomb.nbytes < 1 << 21
    path = replace_parts(write_example(tmp_path / "a"), {"a/gaps": bomb})
    assert_rejected(path, "extend beyond|or more positions")


def test_elements_that_are_not_a_vector_are_rejected(tmp_path: Path) -> None:
    path = write_example(tmp_path / "a")
    replace_parts(path, {"a": torch.ones(2, 2, dtype=torch.int8)})
    assert_rejected(path, r"elements of a must be a vector, but have shape \(2, 2\)")


def test_invalid_bitmaps_are_rejected(tmp_path: Path) -> None:
    path = write_example(tmp_path / "a", "bitmap")
    bitmap = load_file(path)["a/bitmap"]
    assert len(bitmap) == 625
    more, fewer = bitmap.clone(), bitmap.clone()
    more[3], fewer[:] = 255, 0
    for part, message in (
        (bitmap[:-1], "must have 625 bytes for 5,000 elements, but has 624"),
        (more, "or more positions, but there are"),
        (fewer, "index has 0 positions"),
    ):
        assert_rejected(replace_parts(path, {"a/bitmap": part}), message)
    beyond = torch.zeros(625, dtype=torch.uint8)
    beyond[-1] = 128
    replace_parts(path, {"a": torch.ones(1), "a/bitmap": beyond})
    change_metadata(path, tensors={"a": {"shape": [4999], "index": "bitmap"}})
    assert_rejected(path, "bitmap has bits set beyond its 4,999 elements")


def test_invalid_columns_are_rejected(tmp_path: Path) -> None:
    path = write_example(tmp_path / "a", "columns")
    tensors = load_file(path)
    count, pointers = len(tensors["a"]), tensors["a/rows"]
    columns = tensors["a/columns"].to(torch.int64)

    def with_value(tensor: torch.Tensor, position: int, value: int) -> torch.Tensor:
        changed = tensor.to(torch.int64)
        changed[position] = value
        return changed.to(tensor.dtype)

    for part, tensor, message in (
        ("a/columns", tensors["a/columns"][:-1], f"must have {count} columns"),
        ("a/rows", pointers[:-1], "101 row pointers, but has .* 100"),
        ("a/rows", with_value(pointers, 0, 1), "do not ascend from 0"),
        ("a/rows", with_value(pointers, 100, count - 1), "do not ascend from 0"),
        ("a/rows", with_value(pointers, 50, count + 9), "do not ascend from 0"),
        ("a/columns", columns.flip(0).to(torch.uint16), "do not ascend within each row"),
        (
            "a/columns",
            with_value(tensors["a/columns"], 7, 50),
            "a column is beyond the row width of 50",
        ),
    ):
        write_example(path, "columns")
        assert_rejected(replace_parts(path, {part: tensor}), message)
    write_example(path, "columns")
    change_metadata(path, tensors={"a": {"shape": [1, 100_000], "index": "columns"}})
    assert_rejected(path, r"of shape \(1, 100000\) cannot have the index columns")


def test_truncated_and_foreign_files_are_rejected(tmp_path: Path) -> None:
    path = write_example(tmp_path / "a")
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[:-1], whole[:100], whole + b"x", b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        assert_rejected(path, "not a whole safetensors file: .*. Restore the file from a copy, or")
    with pytest.raises(PrunusError, match="there is no file .*: pass the path of an existing"):
        load_sparse(tmp_path / "b")
    with pytest.raises(PrunusError, match="is a folder: pass the path of a file in it"):
        load_sparse(tmp_path)


@pytest.mark.parametrize("size", [1 << 60, 1 << 63, 1 << 64, 10**30])
def test_empty_tensor_with_an_overflowing_shape_is_rejected(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    entry = {"dtype": "F32", "shape": [0, size], "data_offsets": [0, 0]}
    text = json.dumps({"a": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert_rejected(path, "a has a shape that no tensor can have|not a whole safetensors file")


def test_type_that_torch_does_not_have_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a"
    entry = {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}
    text = json.dumps({"a": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2))
    assert_rejected(path, "a has the type F8_E8M0, which this torch does not have")
