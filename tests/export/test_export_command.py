"""Tests of ``prunus export`` on the network of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.commands import prunus
from prunus import save_sparse
from prunus.compaction import load_compact
from prunus.export.onnx_session import OnnxSession
from prunus.recipes.run.loading import load_trained
from prunus.recipes.tasks.architectures import perceptron

pytestmark = pytest.mark.slow


def outputs(file: Path, x: torch.Tensor) -> torch.Tensor:
    model = perceptron(64, 300, 100, 10)
    model.load_state_dict(load_file(file))
    with torch.no_grad():
        result: torch.Tensor = model(x)
    return result


def test_export_to_compact_keeps_outputs_with_fewer_parameters(finished_run: Path) -> None:
    outcome = prunus("export", finished_run, "--to", "compact")
    assert outcome.code == 0, outcome.err
    path = finished_run / "model.compact.safetensors"
    assert f"written to {path}" in outcome.out
    small = load_compact(path, perceptron(64, 300, 100, 10))
    count = sum(p.numel() for p in small.parameters())
    assert count < 50_610
    assert f"50,610 parameters, {count:,} without dead units" in outcome.out
    x = torch.rand(7, 1, 8, 8)
    expected = outputs(finished_run / "model.safetensors", x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)
        # The command can read its compact and its sparse files again.
        torch.testing.assert_close(load_trained(path).model(x), expected, rtol=1e-5, atol=1e-5)
        assert prunus("export", finished_run, "--to", "sparse").code == 0
        sparse = load_trained(finished_run / "model.sparse.safetensors").model
        torch.testing.assert_close(sparse(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.frameworks
def test_export_to_onnx_keeps_outputs_for_any_batch_size(
    finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.onnx"
    outcome = prunus("export", finished_run, "--to", "onnx", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "for batches of any size" in outcome.out
    assert f"{out.stat().st_size:,} bytes" in outcome.out
    assert sorted(tmp_path.iterdir()) == [out]  # a single file with its weights
    for batch in (1, 5):
        x = torch.rand(batch, 1, 8, 8)
        (output,) = OnnxSession(out).outputs((x,), {})
        expected = outputs(finished_run / "model.safetensors", x)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_export_in_int8_to_every_format(finished_run: Path, tmp_path: Path) -> None:
    x = torch.rand(50, 1, 8, 8)
    expected = outputs(finished_run / "model.safetensors", x)
    sizes = {}
    for to in ("sparse", "compact"):
        outcome = prunus("export", finished_run, "--to", to, "--dtype", "int8")
        assert outcome.code == 0, outcome.err
        path = finished_run / f"model.{to}.int8.safetensors"
        assert f"written to {path}" in outcome.out
        actual = load_trained(path).model(x).detach()
        assert 1e-4 < (actual - expected).abs().max() / expected.abs().max() < 0.02
        sizes[to] = path.stat().st_size
    assert prunus("export", finished_run, "--to", "sparse", "--out", tmp_path / "a").code == 0
    assert sizes["sparse"] < 0.7 * (tmp_path / "a").stat().st_size
    prunus("export", finished_run, "--to", "csr", "--dtype", "int8").refused("leave out --dtype")
    assert prunus("export", finished_run, "--to", "onnx", "--dtype", "int4").code == 2


@pytest.mark.frameworks
def test_export_to_onnx_in_int8_calibrates_by_training_inputs(
    finished_run: Path, tmp_path: Path
) -> None:
    outcome = prunus("export", finished_run, "--to", "onnx", "--dtype", "int8")
    assert outcome.code == 0, outcome.err
    path = finished_run / "model.int8.onnx"
    assert f"written to {path}" in outcome.out
    assert "weights in int8" in outcome.out
    assert "example inputs" not in outcome.out
    x = torch.rand(50, 1, 8, 8)
    expected = outputs(finished_run / "model.safetensors", x)
    (actual,) = OnnxSession(path).outputs((x,), {})
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()
    moved = tmp_path / "model.safetensors"
    moved.write_bytes((finished_run / "model.safetensors").read_bytes())
    outcome = prunus("export", moved, "--to", "onnx", "--dtype", "int8")
    assert outcome.code == 0, outcome.err
    assert "come from the recipe's example inputs" in outcome.out


def test_files_without_a_usable_network_are_rejected(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file({"a": torch.eye(40)}, path)
    for to in ("compact", "onnx"):
        prunus("export", path, "--to", to).refused(
            "does not name the recipe", "directory of a", "prunus.load_sparse(path, model)"
        )
    model = finished_run / "model.safetensors"
    prunus("export", finished_run, "--to", "compact", "--out", model).refused("is the file to read")
    prunus("export", finished_run, "--to", "onnx", "--out", tmp_path / "no" / "a").refused(
        "cannot write"
    )
    prunus("bench", tmp_path / "no").refused("there is no file or directory")
    assert prunus("bench", finished_run, "--batch", 0).code == 2
    assert prunus("export", finished_run, "--to", "zip").code == 2
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(model.read_bytes()[:-8])
    prunus("bench", damaged).refused("is not a whole safetensors file")
    save_sparse({"1.weight": torch.ones(2, 2)}, path, metadata={"recipe": "digits"})
    prunus("bench", path).refused("any.safetensors is damaged or missing", "Missing key")
    save_sparse({"1.weight": torch.ones(2, 2)}, path, metadata={"recipe": "gone"})
    prunus("bench", path).refused("there is no recipe 'gone'")
    save_sparse({"1.weight": torch.ones(2, 2)}, path, metadata={"recipe": "shakespeare-lm"})
    prunus("bench", path).refused("language model", "pretrained does not exist")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "config.json").write_text("{}")
    prunus("bench", path).refused("pretrained is damaged, or not of a language model")
    csr = tmp_path / "csr"
    assert prunus("export", finished_run, "--to", "csr", "--out", csr).code == 0
    prunus("bench", csr).refused("holds compressed sparse rows", "that it was exported from")
    small = tmp_path / "small"
    assert prunus("export", finished_run, "--to", "compact", "--out", small).code == 0
    prunus("export", small, "--to", "compact", "--out", path).refused("is compact already")
