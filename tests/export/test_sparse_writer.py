"""Tests of ``save_sparse``: sizes, chosen encodings, -0.0, metadata and rejected arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.comparisons import tensor_bytes
from prunus import SparseFile, load_sparse, save_sparse
from prunus.errors import ArgumentError, ArgumentTypeError
from prunus.export.sparse_format import size_bound

from .files import DTYPES, scattered

# Arguments that a type checker would reject.
NONE: Any = None
THREE: Any = 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.98, 0.99])
def test_file_size_is_within_five_percent_of_the_bound(
    tmp_path: Path, dtype: torch.dtype, sparsity: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(1, 127, (1000, 700), generator=generator).to(dtype)
    kept = torch.rand(1000, 700, generator=generator) >= sparsity
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
        encodings = {name: file.info(name).encoding for name in state}
        info = file.info("rows")
    assert info.stored_bytes < 1.02 * 4 * info.stored_elements
    assert encodings == {
        "dense": "dense",
        "half": "bitmap",
        "few": "gaps",
        "rows": "gaps",
        "none": "gaps",
        "small": "dense",
    }


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t.is_floating_point])
def test_negative_zeros_are_kept_with_a_warning_or_dropped_on_request(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    weight = torch.randn(100, 100).to(dtype)
    weight = (weight.float() * (torch.rand(100, 100) < 0.1)).to(dtype)
    assert int(torch.signbit(weight.float()[weight.float() == 0]).sum()) > 4000
    with pytest.warns(UserWarning, match=r"many zeros of w are -0\.0, .* pass keep_negative_zeros"):
        save_sparse({"w": weight, "b": torch.ones(3)}, tmp_path / "kept")
    assert tensor_bytes(load_sparse(tmp_path / "kept")["w"]) == tensor_bytes(weight)
    save_sparse({"w": weight}, tmp_path / "dropped", keep_negative_zeros=False)
    with SparseFile(tmp_path / "dropped") as file:
        assert file.info("w").stored_elements < 1100
        restored = file.get_tensor("w").float()
    assert torch.equal(restored, weight.float())
    assert not torch.signbit(restored[restored == 0]).any()


def test_metadata_is_restored(tmp_path: Path) -> None:
    facts = {"recipe": "digits", "epochs": [1, 2]}
    save_sparse({"a": torch.eye(90)}, tmp_path / "a", metadata=facts)
    with SparseFile(tmp_path / "a") as file:
        assert file.metadata() == facts


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"a": object()}, ArgumentError, "metadata must hold only values that JSON can represent"),
        ([1], ArgumentTypeError, r"metadata must be a mapping or None, but is \[1\]"),
        (
            {"tied": {}, "recipe": "digits", "sparse": 1},
            ArgumentError,
            "metadata must not use the keys sparse, tensors, tied, .* but has sparse, tied",
        ),
    ],
)
def test_invalid_metadata_is_rejected_and_nothing_is_written(
    tmp_path: Path, metadata: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        save_sparse({"a": torch.eye(90)}, tmp_path / "a", metadata=metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "name", "options", "error", "message"),
    [
        ("a", nn.Linear(2, 2), {}, ArgumentTypeError, r"the order is save_sparse\(model, path\)"),
        (NONE, "a", {}, ArgumentTypeError, "model must be .* but is None"),
        (nn.Linear(2, 2), THREE, {}, ArgumentTypeError, "path must be a path, but is 3"),
        ({THREE: torch.ones(2)}, "a", {}, ArgumentError, "the name 3 is not a string"),
        (nn.LazyLinear(2), "a", {}, ArgumentError, "weight is not initialized yet"),
        (
            {"a": torch.eye(3)},
            "a",
            {"encoding": "zip"},
            ArgumentError,
            "encoding must be 'smallest', .* or 'bitmap', but is 'zip'",
        ),
        (
            {
                "one": 1,
                "two": torch.eye(3, device="meta"),
                "three": torch.eye(3).to_sparse(),
                "four": torch.ones(2, dtype=torch.complex128),
                "five": torch.ones(2),
            },
            "a",
            {},
            ArgumentError,
            "one is a int, two is without data.*three is of layout.*four is of type",
        ),
    ],
)
def test_invalid_arguments_are_rejected_and_nothing_is_written(
    tmp_path: Path, model: Any, name: Any, options: Any, error: type[Exception], message: str
) -> None:
    path = tmp_path / name if isinstance(name, str) else name
    with pytest.raises(error, match=message):
        save_sparse(model, path, **options)
    assert not list(tmp_path.iterdir())
