"""Tests of sparse files with 8-bit integers and a scale for each row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.comparisons import assert_states_identical
from helpers.data import normal
from helpers.errors import message_of
from helpers.sparse_models import TiedEmbedding
from prunus import ArgumentError, SparseFile, SparseFileError, load_sparse, save_sparse
from prunus._utils.row_scales import quantize_rows, restore
from prunus.export import to_csr, to_sparse
from prunus.export.inspection import tensor_densities

from .files import (
    CHOICES,
    assert_rejected,
    change_metadata,
    read_by_specification,
    replace_parts,
)

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def sparse_matrix(
    *shape: int, density: float = 0.05, seed: int = 1, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return normally distributed numbers at random places among zeros."""
    matrix = normal(*shape, seed=seed)
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < density
    return (matrix * kept).to(dtype) + 0.0  # no -0.0


def written(tmp_path: Path, state: dict[str, torch.Tensor], **options: Any) -> Path:
    """Write a state in int8."""
    path = tmp_path / "a.safetensors"
    save_sparse(state, path, dtype="int8", **options)
    return path


def test_the_largest_element_of_each_row_has_127_steps() -> None:
    # 127 · 0.3 = 38.1. The float32 nearest to 1 / 127 is smaller than it, so 63.5 rounds up.
    integers, scales = quantize_rows(torch.tensor([[1.0, -0.3, 0.0], [-2.0, 1.0, 5e-9]]))
    assert scales.tolist() == [float.fromhex("0x1.020408p-7"), float.fromhex("0x1.020408p-6")]
    assert integers.tolist() == [[127, -38, 0], [-127, 64, 0]]
    # A largest element of 1 or 2 is restored exactly.
    restored = restore(integers, scales[:, None], torch.float32)
    assert restored[:, 0].tolist() == [1.0, -2.0]


def test_a_scale_among_the_smallest_numbers_is_rounded_up() -> None:
    # In units of 2^-149, the smallest number above 0: 178 / 127 = 1.4 rounds to 1, of which 178
    # would need 178 steps; with a scale of 2 it has 89.
    smallest = 2.0**-149
    integers, scales = quantize_rows(torch.tensor([[178 * smallest, smallest, -128 * smallest]]))
    assert (scales / smallest).tolist() == [2.0]
    assert integers.tolist() == [[89, 0, -64]]


@given(
    exponent=st.integers(-1074, 127),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 1000),
)
def test_an_element_differs_by_half_a_step_at_most(
    exponent: int, dtype: torch.dtype, seed: int
) -> None:
    numbers = normal(4, 50, seed=seed, dtype=torch.float64) * math.ldexp(1.0, exponent)
    matrix = numbers.to(dtype)
    if not bool(matrix.isfinite().all()):
        return
    integers, scales = quantize_rows(matrix)
    assert integers.abs().max() <= 127
    assert (scales > 0).all()
    exact, steps = matrix.double(), scales.double()[:, None]
    error = (integers.double() * steps - exact).abs()
    assert (error <= steps / 2 * (1 + 1e-12)).all()
    # The type rounds, once, or twice if it has 16 bits.
    restored = restore(integers, scales[:, None], dtype).double()
    rounding = torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
    rounding += torch.finfo(torch.float32).eps * exact.abs() * (dtype != torch.float64)
    assert ((restored - exact).abs() <= steps * 0.5000001 + rounding).all()
    assert (integers[exact == 0] == 0).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("encoding", CHOICES)
def test_files_in_int8_follow_the_specification(
    tmp_path: Path, encoding: str, dtype: torch.dtype
) -> None:
    state = {
        "a": sparse_matrix(30, 200, dtype=dtype),
        "b": normal(40, 50, seed=3).to(dtype),
        "c": sparse_matrix(8, 3, 50, density=0.3, dtype=dtype),
        "bias": normal(30, seed=4).to(dtype),
        "ids": torch.arange(600).reshape(3, 200),
        "few": sparse_matrix(30, 9, density=0.1, dtype=dtype),
    }
    path = written(tmp_path, state, encoding=encoding)
    loaded = load_sparse(path)
    assert_states_identical(loaded, read_by_specification(path))
    with SparseFile(path) as file:
        for name in ("a", "b", "c"):
            info = file.info(name)
            assert (info.shape, info.dtype) == (state[name].shape, dtype)
            assert info.stored_dtype == torch.int8
            integers, scales = quantize_rows(state[name])
            expected = restore(integers, scales.reshape(-1, *[1] * (integers.dim() - 1)), dtype)
            assert_states_identical({name: expected}, {name: loaded[name]})
            stored = file.get_int8(name)
            torch.testing.assert_close(stored, (integers, scales), rtol=0, atol=0)
            matrix = expected.reshape(len(expected), -1)
            torch.testing.assert_close(file.get_csr(name).to_dense(), matrix, rtol=0, atol=0)
        assert file.info("b").encoding == "dense"
        # The rest is lossless: it has fewer dimensions, no fractions, or too few elements.
        for name in ("bias", "ids", "few"):
            assert file.info(name).stored_dtype == state[name].dtype
            assert_states_identical({name: state[name]}, {name: loaded[name]})
        message = message_of(lambda: file.get_int8("bias"), ArgumentError)
        assert "without scales: read it with get_tensor" in message


def test_zeros_are_those_of_the_network_and_of_less_than_half_a_step(tmp_path: Path) -> None:
    matrix = sparse_matrix(50, 400)
    loaded = load_sparse(written(tmp_path, {"a": matrix}))["a"]
    step = matrix.abs().amax(1, keepdim=True) / 127
    assert torch.equal(loaded == 0, matrix.abs() <= step / 2)
    assert int((loaded[matrix != 0] == 0).sum()) < 0.02 * int((matrix != 0).sum())


def test_the_version_is_2_only_where_there_are_scales(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for matrix, version in ((sparse_matrix(30, 200), 2), (torch.ones(2, 2), 1)):
        save_sparse({"a": matrix}, path, dtype="int8")
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert json.loads(header["__metadata__"]["prunus"])["sparse"] == version


def test_a_model_keeps_its_buffers_and_ties(tmp_path: Path) -> None:
    model, path = TiedEmbedding(60, 40), tmp_path / "a.safetensors"
    model.register_buffer("table", normal(30, 40, seed=5))
    save_sparse(model, path, dtype="int8")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = load_sparse(path, model)
    assert torch.equal(loaded["table"], before["table"])
    for name, tensor in model.named_parameters(remove_duplicate=False):
        assert torch.equal(tensor, loaded[name])
        bound = before[name].abs().amax(-1, keepdim=True) / 254 * 1.00001
        assert ((tensor - before[name]).abs() <= bound).all()


def test_a_file_is_within_a_tenth_of_its_bound(tmp_path: Path) -> None:
    # 8 bits for each value, H₂(p) / p for its position, and 4 bytes for each row.
    for density in (0.01, 0.05, 0.1):
        matrix = sparse_matrix(300, 784, density=density)
        path = written(tmp_path, {"a": matrix})
        count = int(np.count_nonzero(load_sparse(path)["a"].numpy()))
        p = count / matrix.numel()
        entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
        bound = count + matrix.numel() * entropy / 8 + 4 * 300
        assert bound < path.stat().st_size < 1.1 * bound
        report = to_sparse(path, tmp_path / "b.safetensors", dtype="int8")
        assert report.bound_bytes == pytest.approx(bound)
        assert "gaps, int8" in str(report)


def test_rounding_again_changes_nothing_and_exports_are_of_the_rounded_matrix(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, {"a": sparse_matrix(40, 300), "b": normal(30, 50, seed=3)})
    first = load_sparse(path)
    again = load_sparse(to_sparse(path, tmp_path / "b.safetensors", dtype="int8").path)
    torch.testing.assert_close(again, first, rtol=3e-7, atol=0)
    lossless = load_sparse(to_sparse(path, tmp_path / "c.safetensors").path)
    assert_states_identical(lossless, first)
    csr = load_sparse(to_csr(path, tmp_path / "d.safetensors").path)
    assert torch.equal(csr["a.values"], first["a"][first["a"] != 0])
    (a, _) = tensor_densities(path)
    assert (a.dtype, a.nonzero) == ("int8", int(first["a"].count_nonzero()))


def test_matrices_that_no_scale_holds_are_refused_together(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    state = {name: sparse_matrix(30, 200) for name in "abcd"}
    state["b"][3, 4] = float("nan")
    state["c"][29, 199] = float("-inf")
    state["d"] = state["d"].double() * 1e300
    state["e"] = torch.full((5,), float("nan"))
    message = message_of(lambda: save_sparse(state, path, dtype="int8"), ArgumentError)
    assert "must have finite elements, of at most 4e40, but b, c, d have others" in message
    message = message_of(lambda: save_sparse(state, path, dtype="int4"), ArgumentError)
    assert "dtype must be 'int8' or None, but is 'int4'" in message
    assert path.read_text() == "old"


def entry(**changes: Any) -> dict[str, Any]:
    """Return the metadata entry of a matrix in int8, with changes."""
    found = {"shape": [30, 200], "index": "gaps", "type": "F32", **changes}
    return {"tensors": {"a": {key: value for key, value in found.items() if value is not None}}}


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown type": (entry(type="I8"), "the type of a must be one of F64, .*, but is 'I8'"),
    "a type that is no name": (entry(type=[]), r"the type of a must be one of .*, but is '\[\]'"),
    "null as type": ({"tensors": {"a": {**entry()["tensors"]["a"], "type": None}}}, "'None'"),
    "null as index": ({"tensors": {"a": {**entry()["tensors"]["a"], "index": None}}}, "'None'"),
    "no index": (entry(index=None), r"the elements of a must be of shape \(30, 200\), but have"),
    "another number of rows": (
        entry(shape=[60, 100]),
        "a/scales must have a scale for each of the 60 rows of a, but has 30",
    ),
    "scales that are missing": (entry(slash="//"), "lacks a//gaps, a//scales"),
    "scales of floats": (
        {"tensors": {**entry()["tensors"], "b": {"shape": [3], "type": "F32"}}},
        "b has scales, but is of torch.float32 instead of torch.int8",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_contradict_themselves_are_rejected(tmp_path: Path, damage: str) -> None:
    state = {"a": sparse_matrix(30, 200), "b": torch.ones(3), "b/scales": torch.ones(3)}
    path = written(tmp_path, state)
    changes, message = DAMAGE[damage]
    change_metadata(path, **changes)
    assert_rejected(path, message)


def test_scales_that_are_no_positive_numbers_are_rejected(tmp_path: Path) -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        path = written(tmp_path, {"a": sparse_matrix(30, 200)})
        scales = torch.ones(30)
        scales[29] = wrong
        replace_parts(path, {"a/scales": scales})
        assert_rejected(path, "a: a scale is not a finite number above 0")
    path = written(tmp_path, {"a": sparse_matrix(30, 200)})
    replace_parts(path, {"a/scales": torch.ones(30, 1)})
    assert_rejected(path, "a/scales must be a vector of float32")
    replace_parts(path, {"a/scales": torch.ones(30, dtype=torch.float64)})
    assert_rejected(path, "a/scales must be a vector of float32, but is torch.float64")


def test_a_version_1_file_has_no_types(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": sparse_matrix(30, 200)})
    change_metadata(path, sparse=1)
    loaded = load_sparse(path)  # as an older reader would read it, without a claim about scales
    assert loaded["a"].dtype == torch.int8
    assert loaded["a/scales"].shape == (30,)


def test_the_memory_of_a_load_is_limited_by_the_restored_type(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": sparse_matrix(100, 1000)})
    assert_rejected(path, "takes 400,000 bytes, above max_bytes, 399,999", max_bytes=399_999)
    with SparseFile(path, max_bytes=100_000) as file:
        assert file.get_int8("a")[0].dtype == torch.int8
    with (
        SparseFile(path, max_bytes=99_999) as file,
        pytest.raises(SparseFileError, match="takes 100,000 bytes, above max_bytes, 99,999"),
    ):
        file.get_int8("a")


def test_a_layer_without_weights_may_be_rounded(tmp_path: Path) -> None:
    state = {"a": torch.zeros(0, 4), "b": torch.zeros(4, 0), "c": torch.zeros(30, 200)}
    assert_states_identical(state, load_sparse(written(tmp_path, state)))
    assert [x.shape for x in quantize_rows(torch.zeros(4, 0))] == [(4, 0), (4,)]
