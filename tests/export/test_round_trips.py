"""Tests that sparse files restore every bit, and follow their specification."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers.comparisons import assert_states_identical, tensor_bytes
from helpers.sparse_models import TiedEmbedding
from prunus import SparseFile, load_sparse, save_sparse
from prunus.export.encodings import ENCODINGS

from .files import CHOICES, DTYPES, read_by_specification, scattered


@pytest.mark.slow
@given(
    shape=st.lists(st.integers(0, 40), min_size=0, max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.003, 0.02, 0.1, 0.5, 0.97, 1.0]),
    dtype=st.sampled_from(DTYPES),
    encoding=st.sampled_from(CHOICES),
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
    assert_states_identical(state, read_by_specification(path))
    with SparseFile(path) as file:
        info = file.info("a")
        assert (info.shape, info.dtype) == (shape, dtype)
        bytes_of_elements = state["a"].reshape(-1, 1).view(torch.uint8)
        positions = bytes_of_elements.any(dim=1).nonzero().flatten()
        if info.encoding != "dense":
            assert info.stored_elements == len(positions)
        if shape and dtype in (torch.float32, torch.float64):
            csr, width = file.get_csr("a"), math.prod(shape[1:])
            rows = torch.arange(shape[0]).repeat_interleave(csr.crow_indices().diff())
            assert torch.equal(rows * width + csr.col_indices(), positions)
            assert tensor_bytes(csr.values()) == tensor_bytes(state["a"].reshape(-1)[positions])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tensors_that_are_decoded_in_several_blocks_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr("prunus.export.encodings._BLOCK", 64)
    kept = scattered((300, 70), 0.05, torch.uint8, 3) != 0
    weight = kept * torch.arange(1.0, 21_001).reshape(300, 70)
    save_sparse({"a": weight}, tmp_path / "a", encoding=encoding)
    with SparseFile(tmp_path / "a") as file:
        assert file.info("a").encoding == encoding
        assert tensor_bytes(file.get_tensor("a")) == tensor_bytes(weight)
        assert tensor_bytes(file.get_csr("a").to_dense()) == tensor_bytes(weight)


SPECIAL = [0x80000000, 0x7FC00001, 0xFFFFFFFF, 0x7F800000, 0x00000001]
"""-0.0, two NaN with payloads, infinity, the smallest number above 0."""


@pytest.mark.parametrize("encoding", CHOICES)
def test_negative_zero_nan_and_subnormals_are_stored_bit_for_bit(
    tmp_path: Path, encoding: str
) -> None:
    bits = np.zeros(4000, dtype=np.uint32)
    bits[[0, 7, 1999, 2000, 3999]] = SPECIAL
    weight = torch.from_numpy(bits.view(np.float32)).reshape(40, 100)
    save_sparse({"a": weight}, tmp_path / "a", encoding=encoding)
    with SparseFile(tmp_path / "a") as file:
        assert file.info("a").stored_elements == 5
        assert file.info("a").encoding in ((encoding,) if encoding != "smallest" else ENCODINGS)
        restored = file.get_tensor("a").reshape(-1).view(torch.int32)
    assert restored.tolist() == bits.view(np.int32).tolist()


def test_tied_tensors_are_stored_once_and_still_tied(tmp_path: Path) -> None:
    model, other = TiedEmbedding(500, 40), TiedEmbedding(500, 40)
    model.embed.weight.data[torch.rand(500, 40) > 0.1] = 0
    path = tmp_path / "tied"
    save_sparse(model, path)
    assert path.stat().st_size < 500 * 40 * 4 * 0.13
    state = load_sparse(path, other)
    assert state["head.weight"] is state["embed.weight"]
    assert other.head.weight is other.embed.weight
    assert_states_identical(model.state_dict(), other.state_dict())
    with SparseFile(path) as file:
        assert file.keys() == ["embed.weight"]
        assert file.tied == {"head.weight": "embed.weight"}
        assert file.info("head.weight") == file.info("embed.weight")
        weight = file.get_tensor("head.weight")
    assert tensor_bytes(weight) == tensor_bytes(model.head.weight.detach())


def test_different_views_of_one_memory_are_stored_separately(tmp_path: Path) -> None:
    base = torch.eye(50)
    views = {"rows": base[:10], "flat": base.reshape(-1), "transposed": base.T, "whole": base}
    save_sparse(views, tmp_path / "a")
    assert_states_identical(views, load_sparse(tmp_path / "a"))


def test_names_that_collide_with_parts_are_restored(tmp_path: Path) -> None:
    state = {
        "a": torch.eye(100),
        "a/gaps": torch.eye(90),
        "a//gaps": torch.ones(2),
        "a/gaps/bitmap": torch.zeros(3),
        "": torch.eye(80),
    }
    for encoding in CHOICES:
        save_sparse(state, tmp_path / "a", encoding=encoding)
        assert_states_identical(state, load_sparse(tmp_path / "a"))
        assert_states_identical(state, read_by_specification(tmp_path / "a"))


def test_plain_safetensors_files_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.eye(3)}, tmp_path / "a", {"prunus": '{"recipe": "digits"}'})
    assert_states_identical(load_sparse(tmp_path / "a"), {"a": torch.eye(3)})
    save_file({"a": torch.eye(3)}, tmp_path / "b")
    with SparseFile(tmp_path / "b") as file:
        assert file.metadata() == {}
        assert file.get_csr("a").to_dense().tolist() == torch.eye(3).tolist()
