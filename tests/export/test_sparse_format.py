"""Tests of the format of sparse files: metadata, sizes and bits, computed by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from prunus.export.encodings import InconsistencyError
from prunus.export.sparse_format import (
    Metadata,
    TensorEntry,
    TensorInfo,
    as_bits,
    can_allocate,
    encode_tensors,
    part_key,
    read_metadata,
    size_bound,
)

ENTRY = {"shape": [2, 3], "index": "columns"}


def content(**fields: Any) -> dict[str, str]:
    return {"prunus": json.dumps({"sparse": 1, "tensors": {"a": ENTRY}, **fields})}


def test_safetensors_reads_encoded_tensors_and_their_metadata() -> None:
    file = encode_tensors({"a": torch.tensor([1.5, -2.0])}, '{"epoch": 3}')
    assert load(file)["a"].tolist() == [1.5, -2.0]
    # A file begins with the length of its header and the header, a JSON object.
    length = int.from_bytes(file[:8], "little")
    assert json.loads(file[8 : 8 + length])["__metadata__"] == {"prunus": '{"epoch": 3}'}


def test_metadata_are_parsed_into_entries_ties_and_facts() -> None:
    entry = TensorEntry((2, 3), "columns", "/")
    assert read_metadata(content()) == Metadata({"a": entry}, {}, {})
    assert read_metadata(content(tied={"b": "a"}, epoch=3)) == Metadata(
        {"a": entry}, {"b": "a"}, {"epoch": 3}
    )
    slashes = read_metadata(content(tensors={"a": {**ENTRY, "slash": "//"}})).entries["a"]
    assert slashes == TensorEntry((2, 3), "columns", "//")
    assert slashes.part_keys("a") == {"columns": "a//columns", "rows": "a//rows"}
    assert part_key("a", "/", "gaps") == "a/gaps"


def test_metadata_of_an_ordinary_file_are_facts() -> None:
    assert read_metadata({}) == Metadata({}, {}, {})
    assert read_metadata({"other": "x"}) == Metadata({}, {}, {})
    assert read_metadata({"prunus": '{"epoch": 3}'}) == Metadata({}, {}, {"epoch": 3})


SHAPE_OF_A = (
    r"^the shape of a must be a list of 1 to 64 sizes of at least 0, whose product is below "
    r"2\*\*60 where 0 counts as 1, but is"
)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"prunus": "{"}, "^the metadata are not valid JSON "),
        ({"prunus": "[]"}, "^the metadata are not a JSON object$"),
        (content(sparse="x" * 30), f"^the file has version {'x' * 20} of the format, but "),
        (content(tensors=None), "^the metadata have no object 'tensors'$"),
        ({"prunus": '{"sparse": 1}'}, "^the metadata have no object 'tensors'$"),
        (content(tied=[]), "^the metadata have no object 'tied'$"),
        (content(tied={"b": 1}), "^the metadata tie tensors to values that are not names$"),
        (content(tensors={"a": 3}), f"{SHAPE_OF_A} None$"),
        (content(tensors={"a": {"shape": 3}}), f"{SHAPE_OF_A} 3$"),
        (content(tensors={"a": {"shape": [1.0]}}), rf"{SHAPE_OF_A} \[1\.0\]$"),
        (
            content(tensors={"a": {"shape": [0], "index": "y" * 30}}),
            f"^the index of a must be one of gaps, columns, bitmap, but is '{'y' * 20}'$",
        ),
        (
            content(tensors={"a": {**ENTRY, "slash": ""}}),
            "^the slash of a must be one or more '/', but is ''$",
        ),
        (
            content(tensors={"a": {**ENTRY, "slash": "/" + "z" * 30}}),
            f"^the slash of a must be one or more '/', but is '/{'z' * 19}'$",
        ),
        (
            content(tensors={"a": {**ENTRY, "slash": "X/"}}),
            "^the slash of a must be one or more '/', but is 'X/'$",
        ),
        (
            content(tensors={"a": {**ENTRY, "slash": 1}}),
            "^the slash of a must be one or more '/', but is '1'$",
        ),
    ],
)
def test_invalid_metadata_are_rejected(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(InconsistencyError, match=message):
        read_metadata(metadata)


@pytest.mark.parametrize(
    ("shape", "possible"),
    [
        ((), True),
        ((1,) * 64, True),
        ((1,) * 65, False),
        (((1 << 60) - 1,), True),
        ((1 << 60,), False),
        ((1 << 30, 1 << 30), False),
        ((1 << 30, (1 << 30) - 1), True),
        ((0, 1 << 60), False),  # an empty dimension counts as 1
        ((0, (1 << 60) - 1), True),
        ((0, 1 << 63), False),
    ],
)
def test_shapes_beyond_the_range_of_torch_are_impossible(
    shape: tuple[int, ...], possible: bool
) -> None:
    assert can_allocate(shape) == possible


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(torch.bfloat16, np.int16), (torch.float32, np.int32), (torch.float64, np.int64)],
)
def test_elements_are_compared_as_a_vector_of_bits(dtype: torch.dtype, bits: Any) -> None:
    vector = as_bits(torch.tensor([[0.0, -0.0]], dtype=dtype))
    assert vector.dtype == bits
    assert vector.tolist() == [0, np.iinfo(bits).min]
    assert as_bits(torch.tensor([True, False])).tolist() == [1, 0]


def test_the_bound_is_the_values_and_the_entropy_of_their_positions() -> None:
    # Of 16 elements half are kept: 8 values of 4 bytes, and 16 bits of positions.
    assert size_bound(numel=16, count=8, bits=32) == 32 + 2
    # With a quarter kept, the entropy is (log2(4) + 3 log2(4 / 3)) / 4 = 0.811278 bits.
    assert size_bound(numel=16, count=4, bits=8) == pytest.approx(4 + 2 * 0.8112781245)
    assert size_bound(numel=16, count=0, bits=32) == 0.0
    assert size_bound(numel=16, count=16, bits=32) == 64.0
    assert size_bound(numel=16, count=15, bits=8) == pytest.approx(15 + 2 * 0.3372900666)
    assert size_bound(numel=16, count=1, bits=8) == pytest.approx(1 + 2 * 0.3372900666)


def test_a_tensor_takes_the_bytes_of_all_its_elements() -> None:
    info = TensorInfo("a", (2, 3), torch.float16, torch.float16, "gaps", 4, 20)
    assert (info.numel, info.dense_bytes) == (6, 12)
