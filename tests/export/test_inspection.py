"""Tests of ``prunus inspect`` and of the densities that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.commands import prunus
from prunus import save_sparse
from prunus.errors import PrunusError
from prunus.export.inspection import TensorDensity, tensor_densities
from prunus.export.paths import model_file


@pytest.fixture
def hand_made(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(
        {
            "fc.weight": torch.tensor([[1.0, 0.0, -0.0], [0.0, float("nan"), 0.0]]),
            "conv.weight": torch.ones(2, 3, 1, 1, dtype=torch.bfloat16),
            "fc.bias": torch.zeros(4, dtype=torch.float64),
            "steps": torch.tensor(7),
            "mask": torch.tensor([True, False]),
            "empty": torch.empty(0, 3),
        },
        path,
    )
    return path


@pytest.fixture
def table(hand_made: Path) -> list[list[str]]:
    outcome = prunus("inspect", hand_made)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{hand_made}: a network, {hand_made.stat().st_size:,} bytes")
    lines = outcome.out.splitlines()[1:]
    assert lines.pop() == (
        "compression ratio 2.0: 16 parameters, of which 8 are non-zero; 3 elements of buffers are "
        "not counted"
    )
    return [line.split() for line in lines if line.strip(" ─")]


def test_every_tensor_is_counted(hand_made: Path) -> None:
    assert list(tensor_densities(hand_made)) == [
        TensorDensity("conv.weight", (2, 3, 1, 1), "bfloat16", 6, 6),
        TensorDensity("empty", (0, 3), "float32", 0, 0),
        TensorDensity("fc.bias", (4,), "float64", 4, 0),
        TensorDensity("fc.weight", (2, 3), "float32", 6, 2),  # -0.0 is zero, NaN is not
        TensorDensity("mask", (2,), "bool", 2, 1),
        TensorDensity("steps", (), "int64", 1, 1),
    ]


def test_a_sparse_file_is_counted_as_the_tensors_it_stands_for(
    hand_made: Path, tmp_path: Path
) -> None:
    tensors = {**load_file(hand_made), "large": torch.eye(100)}
    save_sparse(tensors, tmp_path / "sparse")
    save_file(tensors, hand_made)
    assert list(tensor_densities(tmp_path / "sparse")) == list(tensor_densities(hand_made))


def test_density_is_the_fraction_of_nonzero_elements() -> None:
    assert TensorDensity("w", (8,), "float32", 8, 2).density == 0.25
    assert TensorDensity("w", (0,), "float32", 0, 0).density == 0.0


def test_the_table_shows_shape_type_counts_and_density(table: list[list[str]]) -> None:
    assert table == [
        ["tensor", "shape", "type", "elements", "non-zero", "density"],
        ["conv.weight", "2×3×1×1", "bfloat16", "6", "6", "100%"],
        ["empty", "0×3", "float32", "0", "0", "0%"],
        ["fc.bias", "4", "float64", "4", "0", "0%"],
        ["fc.weight", "2×3", "float32", "6", "2", "33.3%"],
        ["mask", "2", "bool", "2", "1", "buffer"],
        ["steps", "scalar", "int64", "1", "1", "buffer"],
        # 8 of 16, without mask and steps.
        ["parameters", "16", "8", "50.0%"],
    ]


def test_only_parameters_count_as_in_the_compression_ratio(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    rows = list(tensor_densities(tmp_path / "a.safetensors"))
    own = {name for name, _ in model.named_parameters()}
    assert {row.name for row in rows if row.is_parameter} == own
    out = prunus("inspect", tmp_path / "a.safetensors").out
    total = sum(p.numel() for p in model.parameters())
    assert f": {total} parameters, of which " in out
    # Two means, two variances and a count.
    assert "5 elements of buffers are not counted" in out


def test_long_names_are_not_broken(tmp_path: Path) -> None:
    name = "model.decoder.layers.10.encoder_attention.output_projection.original.weight_" * 4
    save_file({name: torch.ones(2)}, tmp_path / "a.safetensors")
    out = prunus("inspect", tmp_path / "a.safetensors").out  # on a terminal of 200 columns
    assert any(name in line and "100%" in line for line in out.splitlines())


def test_kind_of_a_file_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for metadata, kind in (
        ({}, "a network,"),
        ({"recipe": "digits"}, "a network, of the recipe digits,"),
        ({"compact": {}}, "a compact network, whose dead units are removed and not counted,"),
    ):
        save_sparse({"w": torch.eye(10)}, path, metadata=metadata)
        size = path.stat().st_size
        assert prunus("inspect", path).out.startswith(f"{path}: {kind} {size:,} bytes"), metadata


def test_a_file_of_zeros_has_no_ratio(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1500)}, tmp_path / "a.safetensors")
    out = prunus("inspect", tmp_path / "a.safetensors").out
    assert "compression ratio infinite: 1,500 parameters, of which 0 are non-zero" in out


def test_a_file_without_tensors_is_shown_as_empty(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    outcome = prunus("inspect", tmp_path / "a.safetensors")
    assert outcome.code == 0
    assert "0 parameters" in outcome.out


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.complex64],
    ids=str,
)
def test_elements_of_rare_types_are_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"w": torch.tensor([0.0, 1.0, 2.0]).to(dtype)}, tmp_path / "a.safetensors")
    (row,) = tensor_densities(tmp_path / "a.safetensors")
    assert (row.numel, row.nonzero, row.dtype) == (3, 2, str(dtype).removeprefix("torch."))


def test_names_and_paths_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a[bold]b.safetensors"
    save_file({"x[red]y": torch.ones(1)}, path)
    out = prunus("inspect", path).out
    assert "x[red]y" in out
    assert "a[bold]b.safetensors" in out


def test_brackets_that_close_nothing_are_shown_as_they_are(tmp_path: Path) -> None:
    save_file({"x[/]y": torch.ones(1)}, tmp_path / "a.safetensors")
    assert "x[/]y" in prunus("inspect", tmp_path / "a.safetensors").out


def test_the_directory_of_a_run_means_its_model(hand_made: Path) -> None:
    assert model_file(hand_made.parent) == hand_made
    assert model_file(hand_made) == hand_made
    out = prunus("inspect", hand_made.parent).out
    assert out == prunus("inspect", hand_made).out
    assert "33.3%" in out


def test_an_absent_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=r"there is no file or directory .*/absent"):
        model_file(tmp_path / "absent")
    prunus("inspect", tmp_path / "absent").refused("there is no file or directory", "/absent")


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    prunus("inspect", tmp_path).refused(
        f"{tmp_path} holds no model.safetensors: the run may not be complete, or this may not be "
        "the directory of a run"
    )


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.99])
def test_a_damaged_file_is_named(hand_made: Path, fraction: float) -> None:
    whole = hand_made.read_bytes()
    hand_made.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(PrunusError, match=r"model\.safetensors is not a whole safetensors file: "):
        list(tensor_densities(hand_made))
    outcome = prunus("inspect", hand_made)
    outcome.refused("is not a whole safetensors file")
    assert outcome.out == ""


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some notes, longer than a header's length")
    prunus("inspect", tmp_path / "notes.txt").refused("notes.txt is not a whole safetensors file")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_rejected_with_what_to_do(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    outcome = prunus("inspect", path)
    outcome.refused(r"model.pt is a file of torch.save, a pickle, which prunus does not load")
    assert "torch.load(..., weights_only=True)" in " ".join(outcome.err.split())


def test_tensors_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["layers.0.weight", "layers.2.weight", "layers.10.weight", "out.weight"]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    assert [row.name for row in tensor_densities(tmp_path / "model.safetensors")] == names
