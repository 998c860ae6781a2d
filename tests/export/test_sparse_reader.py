"""Tests of ``SparseFile`` and ``load_sparse``: size limits and rejected arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from helpers.comparisons import assert_states_identical
from prunus import PrunusError, SparseFile, SparseFileError, load_sparse, save_sparse
from prunus.errors import ArgumentError, ArgumentTypeError
from prunus.export.encodings import ENCODINGS

from .files import CHOICES, assert_rejected, replace_parts, scattered, write_example

# Arguments that a type checker would reject.
LINEAR: Any = nn.Linear
MODEL: Any = nn.Linear(2, 2)
TEXT: Any = "1 GB"


def test_max_bytes_bounds_the_whole_file_or_each_tensor_read(tmp_path: Path) -> None:
    state = {"a": torch.zeros(1000, 100), "b": torch.zeros(1000, 100)}
    path = tmp_path / "a"
    save_sparse(state, path)
    assert_states_identical(load_sparse(path, max_bytes=800_000), state)
    assert_rejected(path, "takes 800,000 bytes, above max_bytes, 799,999", max_bytes=799_999)
    with SparseFile(path, max_bytes=400_000) as file:
        assert_states_identical({"b": file.get_tensor("b")}, {"b": state["b"]})
    with (
        SparseFile(path, max_bytes=399_999) as file,
        pytest.raises(
            SparseFileError, match="reading b of .* takes 400,000 bytes, above max_bytes"
        ),
    ):
        file.get_tensor("b")


def test_max_bytes_bounds_the_positions_of_a_csr_matrix(tmp_path: Path) -> None:
    save_sparse({"a": torch.eye(100)}, tmp_path / "a")
    needed = 100 * (16 + 4) + 8 * 100  # positions, columns and values; row pointers
    with SparseFile(tmp_path / "a", max_bytes=needed) as file:
        assert torch.equal(file.get_csr("a").to_dense(), torch.eye(100))
    with (
        SparseFile(tmp_path / "a", max_bytes=needed - 1) as file,
        pytest.raises(SparseFileError, match="reading a of .* takes 2,800 bytes, above max_bytes"),
    ):
        file.get_csr("a")


def test_stored_elements_are_returned_in_order(tmp_path: Path) -> None:
    weight = torch.zeros(50, 50)
    weight[3, 4], weight[40, 0], weight[49, 49] = 1.5, -2.0, 3.0
    save_sparse({"a": weight, "b": torch.tensor([[0.0, 7.0]])}, tmp_path / "a")
    with SparseFile(tmp_path / "a") as file:
        assert file.get_elements("a").tolist() == [1.5, -2.0, 3.0]
        assert file.get_elements("b").tolist() == [0.0, 7.0]


def test_stored_bytes_are_those_of_elements_and_index(tmp_path: Path) -> None:
    weight = scattered((100, 50), 0.1, torch.float32, 1)
    for encoding in ENCODINGS:
        path = tmp_path / encoding
        save_sparse({"a": weight, "b": torch.ones(3)}, path, encoding=encoding)
        parts = {name: x for name, x in load_file(path).items() if name.startswith("a")}
        assert len(parts) == 1 + len(ENCODINGS[encoding].parts)
        with SparseFile(path) as file:
            assert file.info("a").stored_bytes == sum(part.nbytes for part in parts.values())
            assert file.info("b").stored_bytes == 12


def test_unknown_names_and_scalars_are_rejected(tmp_path: Path) -> None:
    save_sparse({"weight": torch.eye(30), "step": torch.tensor(3)}, tmp_path / "a")
    with SparseFile(tmp_path / "a") as file:
        for method in (file.info, file.get_tensor, file.get_elements, file.get_csr):
            with pytest.raises(ArgumentError, match="no tensor weigth; did you mean weight"):
                method("weigth")
        with pytest.raises(ArgumentError, match="step is a single number, which has no rows"):
            file.get_csr("step")


def test_reading_from_a_closed_file_is_rejected(tmp_path: Path) -> None:
    with SparseFile(write_example(tmp_path / "a")) as file:
        pass
    assert file.keys() == ["a", "b"]
    with pytest.raises(PrunusError, match="is closed: read from it within its with block"):
        file.get_tensor("a")


def test_changing_returned_metadata_leaves_the_file_unchanged(tmp_path: Path) -> None:
    save_sparse({"a": torch.eye(30)}, tmp_path / "a", metadata={"epoch": 3})
    with SparseFile(tmp_path / "a") as file:
        file.metadata().clear()
        assert file.metadata() == {"epoch": 3}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda path: load_sparse(MODEL, path), ArgumentTypeError, "path must be a path"),
        (lambda path: load_sparse(path / "a", max_bytes=-1), ArgumentError, "max_bytes must be at"),
        (
            lambda path: SparseFile(path / "a", max_bytes=TEXT),
            ArgumentTypeError,
            "max_bytes must be a whole number of at least 0, but is '1 GB'",
        ),
        (lambda path: load_sparse(path), PrunusError, "is a folder"),
        (lambda path: load_sparse(path / "b"), PrunusError, "there is no file"),
        (
            lambda path: load_sparse(path / "a", LINEAR),
            PrunusError,
            "model must be .* the class Linear",
        ),
    ],
)
def test_invalid_arguments_are_rejected(
    tmp_path: Path, call: Any, error: type[Exception], message: str
) -> None:
    write_example(tmp_path / "a")
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_an_unknown_name_without_a_near_one_is_answered_with_all_names(tmp_path: Path) -> None:
    save_sparse({"weight": torch.eye(30), "step": torch.tensor(3)}, tmp_path / "a")
    with (
        SparseFile(tmp_path / "a") as file,
        pytest.raises(ArgumentError, match="has no tensor xyz; it has weight, step$"),
    ):
        file.info("xyz")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_csr_matrix_has_the_shape_of_the_tensor(tmp_path: Path, encoding: str) -> None:
    weight = torch.zeros(40, 10, 3)
    weight[1, 2, 0], weight[1, 4, 1] = 5.0, 6.0
    save_sparse({"a": weight}, tmp_path / "a", encoding=encoding)
    with SparseFile(tmp_path / "a") as file:
        matrix = file.get_csr("a")
    assert matrix.shape == (40, 30)
    assert torch.equal(matrix.to_dense(), weight.reshape(40, 30))


@pytest.mark.parametrize("encoding", CHOICES)
def test_a_vector_becomes_a_matrix_of_one_column(tmp_path: Path, encoding: str) -> None:
    save_sparse({"a": torch.tensor([0.0, 7.0, 0.0, 8.0])}, tmp_path / "a", encoding=encoding)
    with SparseFile(tmp_path / "a") as file:
        matrix = file.get_csr("a")
    assert matrix.crow_indices().tolist() == [0, 0, 1, 1, 2]
    assert matrix.col_indices().tolist() == [0, 0]
    assert matrix.values().tolist() == [7.0, 8.0]


@pytest.mark.parametrize("method", ["get_tensor", "get_elements", "get_csr"])
def test_an_error_of_safetensors_names_file_and_tensor(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_example(tmp_path / "a")

    class Unreadable:
        """A handle whose data cannot be read."""

        def __init__(self, path: Path, framework: str) -> None:
            self._handle: Any = safe_open(path, framework=framework)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._handle, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            raise SafetensorError(f"cannot read {name}")

    monkeypatch.setattr("prunus.export.sparse_reader.safe_open", Unreadable)
    with (
        SparseFile(path) as file,
        pytest.raises(
            SparseFileError, match=r"a is damaged: a: cannot read a\. Restore .* with save_sparse$"
        ),
    ):
        getattr(file, method)("a")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_tensor_without_zeros_may_have_an_index(tmp_path: Path, encoding: str) -> None:
    path = write_example(tmp_path / "a", encoding)
    ones = torch.ones(100, 50)
    index = ENCODINGS[encoding].encode(np.arange(5000), (100, 50))
    parts = {f"a/{part}": torch.from_numpy(array) for part, array in index.items()}
    replace_parts(path, {"a": torch.ones(5000), **parts})
    with SparseFile(path) as file:
        assert file.info("a").encoding == encoding
        assert torch.equal(file.get_tensor("a"), ones)


def test_tensors_that_do_not_fit_the_model_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="example"):
        load_sparse(write_example(tmp_path / "example"), nn.Linear(2, 2))
