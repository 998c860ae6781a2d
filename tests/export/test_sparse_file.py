"""Tests of sparse files: exact round trips, the specification, rejection of damaged files."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.comparisons import assert_states_identical, tensor_bytes
from helpers.sparse_models import TiedEmbedding
from prunus import PrunusError, SparseFile, SparseFileError, load_sparse, save_sparse
from prunus.export.encodings import ENCODINGS
from prunus.export.sparse_format import size_bound

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

SMALLEST = ("smallest", *ENCODINGS)


def scattered(
    shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int
) -> torch.Tensor:
    """Return a tensor of random bits, all 0 but at a share of places."""
    draw = torch.Generator().manual_seed(seed)
    size = math.prod(shape) * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    made = torch.randint(high, (size,), generator=draw, dtype=torch.uint8).view(dtype)
    kept = torch.rand(math.prod(shape), generator=draw) < density
    raw = made.view(torch.uint8).view(-1, dtype.itemsize) * kept[:, None]
    return raw.reshape(-1).view(dtype).reshape(shape)


def plainly(path: Path) -> dict[str, torch.Tensor]:
    """Read a sparse file by the letter of its specification, element by element."""
    held = load_file(path)
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        about = json.loads(json.loads(file.read(size))["__metadata__"]["prunus"])
    state = dict(held)
    for name, entry in about["tensors"].items():
        slash, values = entry.get("slash", "/"), state.pop(name)
        numel, places = math.prod(entry["shape"]), []
        if entry["index"] == "bitmap":
            packed = state.pop(f"{name}{slash}bitmap").tolist()
            places = [i for i in range(numel) if packed[i // 8] >> (i % 8) & 1]
        elif entry["index"] == "columns":
            columns = state.pop(f"{name}{slash}columns").tolist()
            rows = state.pop(f"{name}{slash}rows").tolist()
            width = math.prod(entry["shape"][1:])
            for row, (begin, end) in enumerate(itertools.pairwise(rows)):
                places += [row * width + column for column in columns[begin:end]]
        else:
            place = 0
            for byte in zlib.decompress(bytes(state.pop(f"{name}{slash}gaps").tolist())):
                place += byte
                if byte < 255:
                    places.append(place)
                    place += 1
        whole = torch.zeros(numel * values.dtype.itemsize, dtype=torch.uint8)
        rows_of_bytes = whole.view(-1, values.dtype.itemsize) if numel else whole
        elements = values.view(torch.uint8).view(-1, values.dtype.itemsize)
        for place, element in zip(places, elements, strict=True):
            rows_of_bytes[place] = element
        state[name] = whole.view(values.dtype).reshape(entry["shape"])
    return state | {alias: state[name] for alias, name in about.get("tied", {}).items()}


@given(
    shape=st.lists(st.integers(0, 40), min_size=0, max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.003, 0.02, 0.1, 0.5, 0.97, 1.0]),
    dtype=st.sampled_from(DTYPES),
    encoding=st.sampled_from(SMALLEST),
    seed=st.integers(0, 1000),
)
def test_every_bit_is_restored_as_specified(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    density: float,
    dtype: torch.dtype,
    encoding: str,
    seed: int,
) -> None:
    if math.prod(shape) > 20_000:
        shape = shape[:2]
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    state = {"a": scattered(shape, density, dtype, seed), "b": torch.ones(2)}
    save_sparse(state, path, encoding=encoding)
    assert_states_identical(state, load_sparse(path))
    assert_states_identical(state, plainly(path))
    with SparseFile(path) as file:
        stored = file.info("a")
        assert (stored.shape, stored.dtype) == (shape, dtype)
        element = state["a"].reshape(-1, 1).view(torch.uint8)
        places = element.any(dim=1).nonzero().flatten()
        if stored.encoding != "dense":
            assert stored.stored_elements == len(places)
        if shape and dtype in (torch.float32, torch.float64):
            csr, width = file.get_csr("a"), math.prod(shape[1:])
            rows = torch.arange(shape[0]).repeat_interleave(csr.crow_indices().diff())
            assert torch.equal(rows * width + csr.col_indices(), places)
            assert tensor_bytes(csr.values()) == tensor_bytes(state["a"].reshape(-1)[places])


SPECIAL = [0x80000000, 0x7FC00001, 0xFFFFFFFF, 0x7F800000, 0x00000001]
"""-0.0, two NaN with payloads, infinity, the smallest number above 0."""


@pytest.mark.parametrize("encoding", SMALLEST)
def test_negative_zero_nan_and_subnormals_are_stored_bit_for_bit(
    tmp_path: Path, encoding: str
) -> None:
    raw = np.zeros(4000, dtype=np.uint32)
    raw[[0, 7, 1999, 2000, 3999]] = SPECIAL
    weight = torch.from_numpy(raw.view(np.float32)).reshape(40, 100)
    save_sparse({"a": weight}, tmp_path / "a", encoding=encoding)
    with SparseFile(tmp_path / "a") as file:
        assert file.info("a").stored_elements == 5
        assert file.info("a").encoding in ((encoding,) if encoding != "smallest" else ENCODINGS)
        assert (
            file.get_tensor("a").reshape(-1).view(torch.int32).tolist()
            == raw.view(np.int32).tolist()
        )


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t.is_floating_point])
def test_negative_zeros_are_kept_with_a_warning_or_dropped_on_request(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    weight = torch.randn(100, 100).to(dtype)
    weight = (weight.float() * (torch.rand(100, 100) < 0.1)).to(dtype)
    assert int(torch.signbit(weight[weight.float() == 0].float()).sum()) > 4000
    with pytest.warns(UserWarning, match=r"many zeros of w are -0\.0, .* pass keep_negative_zeros"):
        save_sparse({"w": weight, "b": torch.ones(3)}, tmp_path / "kept")
    assert tensor_bytes(load_sparse(tmp_path / "kept")["w"]) == tensor_bytes(weight)
    save_sparse({"w": weight}, tmp_path / "dropped", keep_negative_zeros=False)
    with SparseFile(tmp_path / "dropped") as file:
        assert file.info("w").stored_elements < 1100
        read = file.get_tensor("w").float()
    assert torch.equal(read, weight.float())
    assert not torch.signbit(read[read == 0]).any()


def test_encodings_match_the_example_of_the_specification() -> None:
    shape, positions = (8,), np.array([2, 7])
    assert ENCODINGS["bitmap"].encode(positions, shape)["bitmap"].tolist() == [0x84]
    stream = ENCODINGS["gaps"].encode(positions, shape)["gaps"].tobytes()
    assert zlib.decompress(stream) == bytes([2, 4])
    stream = ENCODINGS["gaps"].encode(np.array([254, 510, 1276]), (2000,))["gaps"].tobytes()
    assert zlib.decompress(stream) == bytes([254, 255, 0, 255, 255, 255, 0])


@pytest.mark.parametrize(
    "positions", [[254], [255], [256], [0, 255, 510, 511], [0, 256, 766, 1999]]
)
def test_gaps_around_255_are_decoded(positions: list[int]) -> None:
    encoding = ENCODINGS["gaps"]
    parts = encoding.encode(np.array(positions), (2000,))
    found = [int(p) for block in encoding.decode(parts, (2000,), len(positions)) for p in block]
    assert found == positions


@given(
    density=st.floats(0, 1),
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    name=st.sampled_from(list(ENCODINGS)),
)
def test_predicted_size_is_exact_or_a_lower_bound_for_gaps(
    density: float, shape: tuple[int, int], name: str
) -> None:
    positions = np.flatnonzero(scattered(shape, density, torch.uint8, 0).numpy().reshape(-1))
    size = ENCODINGS[name].size(len(positions), shape)
    real = sum(part.nbytes for part in ENCODINGS[name].encode(positions, shape).values())
    assert size == real or (name == "gaps" and size < real)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decoding_in_blocks_yields_all_positions(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.export.encodings._BLOCK", 64)
    positions = np.flatnonzero(scattered((300, 70), 0.05, torch.uint8, 3).numpy().reshape(-1))
    parts = ENCODINGS[encoding].encode(positions, (300, 70))
    blocks = list(ENCODINGS[encoding].decode(parts, (300, 70), len(positions)))
    assert len(blocks) > 5
    assert np.concatenate(blocks).tolist() == positions.tolist()


def test_tied_tensors_are_stored_once_and_still_tied(tmp_path: Path) -> None:
    model, other = TiedEmbedding(500, 40), TiedEmbedding(500, 40)
    model.embed.weight.data[torch.rand(500, 40) > 0.1] = 0
    path = tmp_path / "tied"
    save_sparse(model, path)
    assert path.stat().st_size < 500 * 40 * 4 * 0.13
    loaded = load_sparse(path, other)
    assert loaded["head.weight"] is loaded["embed.weight"]
    assert other.head.weight is other.embed.weight
    assert_states_identical(model.state_dict(), other.state_dict())
    with SparseFile(path) as file:
        assert file.keys() == ["embed.weight"]
        assert tensor_bytes(file.get_tensor("head.weight")) == tensor_bytes(
            model.head.weight.detach()
        )
    # Views of one memory that are not the same tensor are no tied ones.
    base = torch.eye(50)
    views = {"rows": base[:10], "flat": base.reshape(-1), "turned": base.T, "whole": base}
    save_sparse(views, path)
    assert_states_identical(views, load_sparse(path))


def test_names_that_collide_with_parts_are_restored(tmp_path: Path) -> None:
    state = {
        "a": torch.eye(100),
        "a/gaps": torch.eye(90),
        "a//gaps": torch.ones(2),
        "a/gaps/bitmap": torch.zeros(3),
        "": torch.eye(80),
    }
    for encoding in SMALLEST:
        save_sparse(state, tmp_path / "a", encoding=encoding)
        assert_states_identical(state, load_sparse(tmp_path / "a"))
        assert_states_identical(state, plainly(tmp_path / "a"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.98, 0.99])
def test_file_size_is_within_five_percent_of_the_bound(
    tmp_path: Path, dtype: torch.dtype, sparsity: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randint(1, 127, (1000, 700), generator=draw).to(dtype)
    kept = torch.rand(1000, 700, generator=draw) >= sparsity
    save_sparse({"weight": numbers * kept}, tmp_path / "a")
    bound = size_bound(700_000, int(kept.sum()), 8 * dtype.itemsize)
    size = (tmp_path / "a").stat().st_size
    assert bound < size <= 1.05 * bound


def test_smallest_encoding_is_chosen_per_tensor(tmp_path: Path) -> None:
    rows = torch.zeros(2000, 100)
    rows[::7] = 1.5
    state = {
        "dense": torch.rand(50, 50) + 1,
        "half": torch.rand(300, 300).round(),
        "few": scattered((1000, 1000), 0.02, torch.float32, 0),
        "rows": rows,
        "none": torch.zeros(300, 300),
        "small": torch.eye(3),
    }
    save_sparse(state, tmp_path / "a")
    with SparseFile(tmp_path / "a") as file:
        names = file.keys()
        chosen = {name: file.info(name).encoding for name in names}
        assert file.info("rows").stored_bytes < 1.02 * 4 * file.info("rows").stored_elements
    assert chosen == {
        "dense": "dense",
        "half": "bitmap",
        "few": "gaps",
        "rows": "gaps",
        "none": "gaps",
        "small": "dense",
    }


def test_plain_safetensors_files_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.eye(3)}, tmp_path / "a", {"prunus": '{"recipe": "digits"}'})
    assert_states_identical(load_sparse(tmp_path / "a"), {"a": torch.eye(3)})
    save_file({"a": torch.eye(3)}, tmp_path / "b")
    with SparseFile(tmp_path / "b") as file:
        assert file.metadata() == {}
        assert file.get_csr("a").to_dense().tolist() == torch.eye(3).tolist()


def test_metadata_is_restored_and_must_be_json(tmp_path: Path) -> None:
    save_sparse({"a": torch.eye(90)}, tmp_path / "a", metadata={"recipe": "digits"})
    with SparseFile(tmp_path / "a") as file:
        assert file.metadata() == {"recipe": "digits"}
    with pytest.raises(PrunusError, match="metadata must hold only values that JSON can represent"):
        save_sparse({"a": torch.eye(90)}, tmp_path / "a", metadata={"a": object()})


def header(content: bytes) -> tuple[Any, bytes]:
    """Return a file's header, its own metadata parsed, and its data."""
    size = int.from_bytes(content[:8], "little")
    held = json.loads(content[8 : 8 + size])
    held["__metadata__"]["prunus"] = json.loads(held["__metadata__"]["prunus"])
    return held, content[8 + size :]


def joined(held: Any, data: bytes) -> bytes:
    own = {"prunus": json.dumps(held["__metadata__"]["prunus"])}
    text = json.dumps({**held, "__metadata__": own}).encode()
    return len(text).to_bytes(8, "little") + text + data


def write(path: Path, encoding: str = "gaps") -> Path:
    weight = scattered((100, 50), 0.1, torch.int8, 1)
    save_sparse({"a": weight, "b": torch.ones(3)}, path, encoding=encoding)
    return path


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(SparseFileError, match=message) as raised:
        load_sparse(path, **options)
    assert str(path) in str(raised.value)


TAMPERED: dict[str, tuple[Any, str]] = {
    "version": ({"sparse": 2}, "version 2 of the format, but this prunus reads version 1"),
    "a version that is none": ({"sparse": [1]}, "version"),
    "tensors that are none": ({"tensors": []}, "have no object 'tensors'"),
    "an unknown index": (
        {"tensors": {"a": {"shape": [100, 50], "index": "x"}}},
        "the index of a must be one of gaps, columns, bitmap, but is 'x'",
    ),
    "an index that is no name": (
        {"tensors": {"a": {"shape": [100, 50], "index": []}}},
        "index of a must be .*, but is '\\[\\]'",
    ),
    "no shape": ({"tensors": {"a": {"index": "gaps"}}}, "no valid shape of a"),
    "a negative size": (
        {"tensors": {"a": {"shape": [-1, 50], "index": "gaps"}}},
        "no valid shape of a",
    ),
    "a size that is none": (
        {"tensors": {"a": {"shape": [True, 50], "index": "gaps"}}},
        "no valid shape of a",
    ),
    "no elements": ({"tensors": {"a": {"shape": [0], "index": "gaps"}}}, "cannot have"),
    "too few elements": ({"tensors": {"a": {"shape": [100], "index": "gaps"}}}, "cannot have"),
    "overflowing sizes": (
        {"tensors": {"a": {"shape": [1 << 40, 1 << 40], "index": "gaps"}}},
        "no valid shape of a",
    ),
    "terabytes": (
        {"tensors": {"a": {"shape": [1 << 40], "index": "gaps"}}},
        r"1,099,511,627,788 bytes, above max_bytes, 68,719,476,736: if you trust the file, raise",
    ),
    "another tensor's shape": (
        {"tensors": {"a": {"shape": [10, 50], "index": "gaps"}}},
        "cannot have|gaps extend beyond the 500 elements",
    ),
    "absent parts": (
        {"tensors": {"a": {"shape": [100, 50], "index": "bitmap"}}},
        "lacks a/bitmap",
    ),
    "an absent tensor": (
        {"tensors": {"c": {"shape": [100, 50], "index": "gaps"}}},
        "lacks c, c/gaps",
    ),
    "parts nowhere": (
        {"tensors": {"a": {"shape": [100, 50], "index": "gaps", "slash": "."}}},
        "the slash of a must be one or more '/', but is '.'",
    ),
    "a part of two tensors": (
        {
            "tensors": {
                "a": {"shape": [100, 50], "index": "gaps"},
                "a/gaps": {"shape": [100, 50], "index": "gaps"},
            }
        },
        "a/gaps belongs to two",
    ),
    "a part of another type": (
        {"tensors": {"b": {"shape": [100], "index": "gaps"}}},
        "lacks b/gaps",
    ),
    "ties to nothing": ({"tied": {"c": "d"}}, "tie c to d"),
    "ties in a ring": ({"tied": {"c": "d", "d": "c"}}, "tie c to d, d to c"),
    "a tie over a tensor": ({"tied": {"b": "a"}}, "tie b to a"),
    "a tie to no name": ({"tied": {"c": 3}}, "not names"),
}


@pytest.mark.parametrize(("change", "message"), TAMPERED.values(), ids=TAMPERED)
def test_contradictory_metadata_is_rejected(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a")
    held, data = header(path.read_bytes())
    held["__metadata__"]["prunus"] |= change
    path.write_bytes(joined(held, data))
    refused(path, message)


def test_metadata_that_is_not_json_is_rejected(tmp_path: Path) -> None:
    for text in ("{", "[" * 100_000, "3", "\x00"):
        save_file({"a": torch.eye(3)}, tmp_path / "a", {"prunus": text})
        refused(tmp_path / "a", "metadata are not (valid JSON|a JSON object)")


def replaced(path: Path, **parts: Any) -> Path:
    """Put other tensors in place of those of a file."""
    held, _ = header(path.read_bytes())
    tensors = load_file(path) | {
        name.replace("_", "/"): torch.as_tensor(t) for name, t in parts.items()
    }
    save_file(tensors, path, {"prunus": json.dumps(held["__metadata__"]["prunus"])})
    return path


def deflated(symbols: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zlib.compress(symbols)), dtype=torch.uint8)


def test_invalid_gaps_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    kept = len(load_file(path)["a"])
    whole = load_file(path)["a/gaps"]
    for part, message in {
        whole[:-5]: "gaps are truncated",
        torch.cat([whole, whole[:1]]): "continue after the end",
        torch.cat([whole, whole]): "continue after the end",
        whole.flip(0): "not a zlib stream",
        whole[:0]: "gaps are truncated",
        deflated(bytes(kept - 1)): "index has .* positions, but there are",
        deflated(bytes(kept + 1)): "or more positions, but there are",
        deflated(bytes([255] * 20)): "gaps extend beyond the 5,000 elements",
        deflated(bytes(kept - 1) + b"\xff" * 20): "gaps extend beyond the 5,000 elements",
        # A gigabyte of zeros, in a megabyte.
        deflated(bytes(1 << 30)): "extend beyond|or more positions",
    }.items():
        refused(replaced(path, a_gaps=part), message)
    refused(
        replaced(path, a_gaps=torch.ones(8, dtype=torch.int8)),
        "a/gaps must be a vector of uint8, but is torch.int8",
    )
    refused(replaced(path, a=torch.ones(2, 2, dtype=torch.int8)), "elements of a must be a vector")


def test_invalid_bitmaps_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "bitmap")
    whole = load_file(path)["a/bitmap"]
    assert len(whole) == 625
    more, fewer = whole.clone(), whole.clone()
    more[3], fewer[:] = 255, 0
    for part, message in {
        whole[:-1]: "must have 625 bytes for 5,000 elements, but has 624",
        more: "or more positions, but there are",
        fewer: "index has 0 positions",
    }.items():
        refused(replaced(path, a_bitmap=part), message)
    held, _ = header(path.read_bytes())
    odd = {"a": {"shape": [4999], "index": "bitmap"}}
    beyond = torch.zeros(625, dtype=torch.uint8)
    beyond[-1] = 128
    save_file(
        {"a": torch.ones(1), "a/bitmap": beyond},
        path,
        {"prunus": json.dumps({**held["__metadata__"]["prunus"], "tensors": odd})},
    )
    refused(path, "bitmap has bits set beyond its 4,999 elements")


def test_invalid_columns_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "columns")
    parts = load_file(path)
    columns, rows, kept = parts["a/columns"], parts["a/rows"].to(torch.int64), len(parts["a"])

    def pointers(**changes: int) -> torch.Tensor:
        changed = rows.clone()
        for place, value in changes.items():
            changed[int(place[1:])] = value
        return changed.to(torch.uint32)

    turned, wide = columns.to(torch.int64).flip(0), columns.to(torch.int64)
    wide[7] = 50
    for changed, message in (
        ({"a_columns": columns[:-1]}, f"must have {kept} columns"),
        ({"a_rows": parts["a/rows"][:-1]}, "101 row pointers, but has .* 100"),
        ({"a_rows": pointers(_0=1)}, "do not ascend from 0"),
        ({"a_rows": pointers(_100=kept - 1)}, "do not ascend from 0"),
        ({"a_rows": pointers(_50=kept + 9)}, "do not ascend from 0"),
        ({"a_columns": turned.to(torch.uint16)}, "do not ascend within each row"),
        ({"a_columns": wide.to(torch.uint16)}, "a column is beyond the row width of 50"),
    ):
        refused(replaced(write(path, "columns"), **changed), message)
    replaced(path, a_columns=columns)
    held, data = header(path.read_bytes())
    held["__metadata__"]["prunus"]["tensors"]["a"]["shape"] = [1, 100_000]
    path.write_bytes(joined(held, data))
    refused(path, r"of shape \(1, 100000\) cannot have the index columns")


def test_truncated_and_foreign_files_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[:-1], whole[:100], whole + b"x", b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        refused(path, "not a whole safetensors file")
    with pytest.raises(PrunusError, match="there is no file"):
        load_sparse(tmp_path / "b")
    with pytest.raises(PrunusError, match="is a folder"):
        load_sparse(tmp_path)


@pytest.mark.parametrize("size", [1 << 60, 1 << 63, 1 << 64, 10**30])
def test_empty_tensor_with_an_overflowing_shape_is_rejected(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    entry = {"dtype": "F32", "shape": [0, size], "data_offsets": [0, 0]}
    text = json.dumps({"a": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(path, "a has a shape that no tensor can have|not a whole safetensors file")


def test_limit_bounds_the_whole_file_or_each_tensor_read(tmp_path: Path) -> None:
    state = {"a": torch.zeros(1000, 100), "b": torch.zeros(1000, 100)}
    save_sparse(state, tmp_path / "a")
    assert_states_identical(load_sparse(tmp_path / "a", max_bytes=800_000), state)
    refused(tmp_path / "a", "takes 800,000 bytes, above max_bytes, 799,999", max_bytes=799_999)
    with SparseFile(tmp_path / "a", max_bytes=400_000) as file:
        assert_states_identical({"b": file.get_tensor("b")}, {"b": state["b"]})
    with (
        SparseFile(tmp_path / "a", max_bytes=399_999) as file,
        pytest.raises(
            SparseFileError, match="reading b of .* takes 400,000 bytes, above max_bytes"
        ),
    ):
        file.get_tensor("b")


def test_unsupported_tensors_and_unknown_names_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        PrunusError, match="encoding must be 'smallest', .* or 'bitmap', but is 'zip'"
    ):
        save_sparse({"a": torch.eye(3)}, tmp_path / "a", encoding="zip")
    unfit: dict[str, Any] = {
        "one": 1,
        "two": torch.eye(3, device="meta"),
        "three": torch.eye(3).to_sparse(),
        "four": torch.ones(2, dtype=torch.complex128),
        "five": torch.ones(2),
    }
    with pytest.raises(
        PrunusError, match="one is a int, two is without data.*three is of layout.*four is of type"
    ):
        save_sparse(unfit, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    save_sparse(nn.Linear(30, 30), tmp_path / "a")
    with pytest.raises(PrunusError, match=r"does not fit the model: (?s:.*)size mismatch"):
        load_sparse(tmp_path / "a", nn.Linear(30, 31))
    with SparseFile(tmp_path / "a") as file:
        with pytest.raises(PrunusError, match="no tensor weigth; did you mean weight"):
            file.get_tensor("weigth")
        save_sparse({"a": torch.tensor(3)}, tmp_path / "b")
    with SparseFile(tmp_path / "b") as file, pytest.raises(PrunusError, match="has no rows"):
        file.get_csr("a")
