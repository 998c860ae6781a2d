"""Tests of ``prunus export --to sparse``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.commands import prunus
from helpers.comparisons import assert_states_identical
from prunus import PrunusError, SparseFile, load_sparse, save_sparse
from prunus.errors import ArgumentTypeError
from prunus.export import to_csr, to_sparse
from prunus.export.sparse_format import size_bound


@pytest.mark.slow
def test_export_to_sparse_keeps_every_tensor_in_a_smaller_file(finished_run: Path) -> None:
    outcome = prunus("export", finished_run, "--to", "sparse")
    assert outcome.code == 0, outcome.err
    path = finished_run / "model.sparse.safetensors"
    assert f"written to {path}" in outcome.out
    model = finished_run / "model.safetensors"
    assert_states_identical(load_file(model), load_sparse(path))
    with SparseFile(path) as file:
        assert file.metadata()["recipe"] == "digits"
    before, after = model.stat().st_size, path.stat().st_size
    assert after < before
    assert f"{before:,}" in outcome.out
    assert f"{after:,}" in outcome.out
    assert f"{before / after:.1f}× smaller" in outcome.out


def test_size_bound_counts_every_tensor_also_of_a_sparse_file(
    tmp_path: Path,
) -> None:
    kept = torch.rand(300, 300, generator=torch.Generator().manual_seed(0)) < 0.1
    tensors = {"large": kept.float(), "small": torch.eye(4), "whole": torch.ones(5)}
    save_file(tensors, tmp_path / "a.safetensors")
    report = to_sparse(tmp_path / "a.safetensors", tmp_path / "b")
    assert report.bound_bytes == pytest.approx(
        size_bound(90_000, int(kept.sum()), 32) + size_bound(16, 4, 32) + 4 * 5
    )
    assert report.bytes == (tmp_path / "b").stat().st_size < 1.05 * report.bound_bytes
    again = to_sparse(str(tmp_path / "b"), str(tmp_path / "c"))
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()
    assert again.bound_bytes == report.bound_bytes


def test_compressed_rows_of_tied_tensors_are_rejected(tmp_path: Path) -> None:
    weight = torch.eye(100)
    save_sparse({"a": weight, "b": weight}, tmp_path / "a")
    rows = to_csr(tmp_path / "a").path
    with pytest.raises(PrunusError, match="holds compressed rows and tied tensors: export the"):
        to_sparse(rows, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("export", [to_sparse, to_csr])
def test_arguments_that_are_not_paths_are_rejected(export: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="source must be a path, but is 3"):
        export(3)
    with pytest.raises(ArgumentTypeError, match="out must be a path, but is 3"):
        export(tmp_path / "a", 3)


@pytest.mark.slow
def test_invalid_paths_are_rejected_and_the_model_is_unchanged(
    finished_run: Path, tmp_path: Path
) -> None:
    model = finished_run / "model.safetensors"
    before = model.read_bytes()
    prunus("export", model, "--to", "sparse", "--out", model).refused("is the file to read")
    assert model.read_bytes() == before
    prunus("export", tmp_path / "no", "--to", "sparse").refused("there is no file or directory")
    prunus("export", tmp_path, "--to", "sparse").refused("holds no model.safetensors")
    out = tmp_path / "no" / "file"
    prunus("export", model, "--to", "sparse", "--out", out).refused("cannot write")
    (tmp_path / "text").write_text("x" * 100)
    prunus("export", tmp_path / "text", "--to", "sparse").refused("not a whole safetensors file")
