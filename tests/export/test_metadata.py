"""Tests of the metadata that the writers of files store, byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from prunus import save_sparse
from prunus.errors import PrunusError
from prunus.export import to_csr
from prunus.export.paths import model_file
from prunus.export.sparse_format import encode_tensors
from prunus.recipes.run.weight_file import encode_weights


def stored_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def test_sparse_files_store_json_without_spaces(tmp_path: Path) -> None:
    eye = torch.eye(100)
    save_sparse({"a": eye, "b": eye}, tmp_path / "a", metadata={"recipe": "mine", "epoch": 3})
    assert stored_metadata(tmp_path / "a") == {
        "prunus": '{"recipe":"mine","epoch":3,"sparse":1,'
        '"tensors":{"a":{"shape":[100,100],"index":"gaps"}},"tied":{"b":"a"}}'
    }


def test_files_of_compressed_rows_store_shapes_and_facts(tmp_path: Path) -> None:
    eye = torch.eye(100)
    save_sparse({"a": eye, "b": eye}, tmp_path / "a", metadata={"recipe": "mine"})
    report = to_csr(tmp_path / "a")
    assert stored_metadata(report.path) == {
        "prunus": '{"recipe": "mine", "tied": {"b": "a"}, "csr": {"a": [100, 100]}}'
    }


def test_weight_files_store_recipe_and_sparsity_and_tied_tensors_once(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    (tmp_path / "a").write_bytes(encode_weights(model, recipe="mine", sparsity=0.5))
    assert stored_metadata(tmp_path / "a") == {"prunus": '{"recipe": "mine", "sparsity": 0.5}'}
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert sorted(file.keys()) == ["0.bias", "0.weight", "1.bias"]


def test_encoded_tensors_are_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"a": torch.eye(3)}
    save_file(tensors, tmp_path / "a", {"prunus": "{}"})
    assert encode_tensors(tensors, "{}") == (tmp_path / "a").read_bytes()


def test_path_that_does_not_exist_is_rejected_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="no file or directory .*: pass the path of an existing"):
        model_file(tmp_path / "absent")
