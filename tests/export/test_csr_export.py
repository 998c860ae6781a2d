"""Tests of the export to compressed sparse rows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.commands import prunus
from prunus import SparseFile, save_sparse
from prunus.export import to_csr


def dense(state: dict[str, torch.Tensor], name: str, shape: torch.Size) -> torch.Tensor:
    """Return a tensor of a file of compressed rows, computed row by row."""
    if name in state:
        return state[name]
    values, columns, pointers = (
        state[f"{name}.{part}"].numpy() for part in ("values", "col_indices", "crow_indices")
    )
    assert columns.dtype == pointers.dtype == np.int32
    matrix = np.zeros(shape, np.float32)
    for row, (begin, end) in enumerate(itertools.pairwise(pointers)):
        matrix[row, columns[begin:end]] = values[begin:end]
    return torch.from_numpy(matrix)


@pytest.mark.slow
def test_export_to_csr_restores_every_tensor(finished_run: Path) -> None:
    outcome = prunus("export", finished_run, "--to", "csr")
    assert outcome.code == 0, outcome.err
    path = finished_run / "model.csr.safetensors"
    source, state = load_file(finished_run / "model.safetensors"), load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert '"csr"' in metadata["prunus"]
    for name, tensor in source.items():
        assert torch.equal(dense(state, name, tensor.shape), tensor), name
    assert "1.weight.values" in state
    assert f"{path.stat().st_size:,}" in outcome.out


def test_csr_flattens_kernels_and_keeps_ties_and_conflicting_names(tmp_path: Path) -> None:
    kernel = torch.zeros(4, 3, 5, 5)
    kernel[1, 2, 3, 4] = 2
    tensors = {
        "a": torch.zeros(50, 50),
        "a.values": torch.ones(2),
        "kernel": kernel,
        "whole": torch.ones(3, 3),
        "number": torch.tensor(3.0),
    }
    save_sparse({**tensors, "tied": tensors["kernel"]}, tmp_path / "m")
    report = to_csr(tmp_path / "m")
    state = load_file(report.path)
    # The values of "a" would have the name of another tensor.
    assert torch.equal(state["a"], tensors["a"])
    assert state["kernel.values"].tolist() == [2]
    assert state["kernel.col_indices"].tolist() == [2 * 25 + 3 * 5 + 4]
    assert state["kernel.crow_indices"].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(state["whole"], tensors["whole"])
    with SparseFile(report.path) as file:
        assert file.metadata() == {"csr": {"kernel": [4, 3, 5, 5]}, "tied": {"tied": "kernel"}}
    encodings = {info.name: (info.encoding, info.stored_elements) for info in report.tensors}
    assert encodings == {
        "a": ("dense", 2500),
        "a.values": ("dense", 2),
        "kernel": ("csr", 1),
        "whole": ("dense", 9),
        "number": ("dense", 1),
    }
