"""Tests of ``prunus export`` and ``prunus bench`` on the network of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.commands import prunus
from prunus import PrunusError, SparseFile, save_sparse
from prunus.bench import BenchReport, BenchRow
from prunus.compaction import load_compact
from prunus.export import to_csr, to_onnx
from prunus.export.onnx_session import OnnxSession
from prunus.recipes.run.finished import load_finished
from prunus.recipes.tasks.models import perceptron


def outputs(file: Path, x: torch.Tensor) -> torch.Tensor:
    model = perceptron(64, 300, 100, 10)
    model.load_state_dict(load_file(file))
    with torch.no_grad():
        made: torch.Tensor = model(x)
    return made


def test_export_to_compact_keeps_outputs_with_fewer_parameters(run: Path) -> None:
    outcome = prunus("export", run, "--to", "compact")
    assert outcome.code == 0, outcome.err
    path = run / "model.compact.safetensors"
    assert f"written to {path}" in outcome.out
    small = load_compact(path, perceptron(64, 300, 100, 10))
    count = sum(p.numel() for p in small.parameters())
    assert count < 50_610
    assert f"50,610 parameters, {count:,} without what is dead" in outcome.out
    x = torch.rand(7, 1, 8, 8)
    right = outputs(run / "model.safetensors", x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), right, rtol=1e-5, atol=1e-5)
        # The command itself reads it again, and a sparse file of the run.
        torch.testing.assert_close(load_finished(path).model(x), right, rtol=1e-5, atol=1e-5)
        assert prunus("export", run, "--to", "sparse").code == 0
        sparse = load_finished(run / "model.sparse.safetensors").model
        torch.testing.assert_close(sparse(x), right, rtol=1e-5, atol=1e-5)


def test_export_to_onnx_keeps_outputs_for_any_batch_size(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    outcome = prunus("export", run, "--to", "onnx", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "for batches of any size" in outcome.out
    assert f"{out.stat().st_size:,} bytes" in outcome.out
    assert sorted(tmp_path.iterdir()) == [out]  # the weights are in it
    for batch in (1, 5):
        x = torch.rand(batch, 1, 8, 8)
        (made,) = OnnxSession(out).outputs((x,), {})
        right = outputs(run / "model.safetensors", x)
        torch.testing.assert_close(made, right, rtol=1e-5, atol=1e-5)


def test_export_to_csr_restores_every_tensor(run: Path) -> None:
    outcome = prunus("export", run, "--to", "csr")
    assert outcome.code == 0, outcome.err
    path, source = run / "model.csr.safetensors", load_file(run / "model.safetensors")
    held = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert '"csr"' in about["prunus"]
    rebuilt = {}
    for name, tensor in source.items():
        if name in held:
            rebuilt[name] = held[name]
            continue
        values, columns, begins = (
            held[f"{name}.{part}"].numpy() for part in ("values", "col_indices", "crow_indices")
        )
        assert columns.dtype == begins.dtype == np.int32
        matrix = np.zeros(tensor.shape, np.float32)
        for row in range(len(begins) - 1):
            part = slice(begins[row], begins[row + 1])
            matrix[row, columns[part]] = values[part]
        rebuilt[name] = torch.from_numpy(matrix)
    for name, tensor in source.items():
        assert torch.equal(rebuilt[name], tensor), name
    assert "1.weight.values" in held
    assert f"{path.stat().st_size:,}" in outcome.out


def test_csr_flattens_kernels_and_keeps_ties_and_conflicting_names(tmp_path: Path) -> None:
    kernel = torch.zeros(4, 3, 5, 5)
    kernel[1, 2, 3, 4] = 2
    tensors = {"a": torch.zeros(50, 50), "a.values": torch.ones(2), "kernel": kernel,
               "whole": torch.ones(3, 3), "number": torch.tensor(3.0)}  # fmt: skip
    save_sparse({**tensors, "tied": tensors["kernel"]}, tmp_path / "m")
    exported = to_csr(tmp_path / "m")
    held = load_file(exported.path)
    assert torch.equal(held["a"], tensors["a"])  # of whose parts one would have another's name
    assert held["kernel.values"].tolist() == [2]
    assert held["kernel.col_indices"].tolist() == [2 * 25 + 3 * 5 + 4]
    assert held["kernel.crow_indices"].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(held["whole"], tensors["whole"])
    with SparseFile(exported.path) as file:
        assert file.metadata() == {"csr": {"kernel": [4, 3, 5, 5]}, "tied": {"tied": "kernel"}}


def test_bench_reports_consistent_timings_and_a_recommendation(run: Path) -> None:
    outcome = prunus("bench", run, "--batch", 1, "--batch", 32, "--threads", 1)
    assert outcome.code == 0, outcome.err
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in outcome.out.splitlines()
        if line.startswith("│")
    ]
    names = [row[2] for row in rows]
    assert names.count("dense") == names.count("compact") == names.count("onnxruntime") == 2
    assert [row[:2] for row in rows if row[2] == "dense"] == [["1", "1"], ["32", "1"]]
    dense = 0.0
    for row in rows:
        dense = float(row[3]) if row[2] == "dense" else dense
        assert float(row[5].rstrip("×")) == pytest.approx(dense / float(row[3]), rel=0.02)
        low, high = map(float, row[4].split(" to "))
        assert low <= float(row[3]) <= high
    assert re.search(r"^(use .* as fast as the dense network|keep the dense)", outcome.out, re.M)
    assert "times what any file takes at least" in outcome.out


def test_bench_of_a_plain_file_times_its_matrices(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file({"a": torch.eye(40), "b": torch.ones(3), "c": torch.zeros(4, 2, 3)}, path)
    outcome = prunus("bench", path, "--batch", 2, "--threads", 1)
    assert outcome.code == 0, outcome.err
    assert "does not say of which network it is" in outcome.out
    assert "1,624 parameters" in outcome.out
    save_file({"b": torch.ones(3)}, path)
    prunus("bench", path).refused("there is no matrix in float32")


def row(batch: int, **milliseconds: float) -> BenchRow:
    """A row of timings by hand, a comma for each underscore of a variant's name."""
    times = {
        name.replace("_", ", "): {"median_ms": ms, "quartile_1_ms": ms, "quartile_3_ms": ms}
        for name, ms in milliseconds.items()
    }
    return BenchRow(batch, 1, times, dict.fromkeys(times, 0.0), ())


@pytest.mark.parametrize(
    ("rows", "excluded", "advice"),
    [
        ([row(1, dense=1), row(64, dense=8)], {}, "keep the dense network, for nothing is faster"),
        ([row(1, dense=1, compact=0.98)], {}, "keep the dense network"),
        (
            [row(1, dense=1, compact=0.5), row(64, dense=8, compact=4, sparse=1)],
            {},  # sparse gains nothing at 1, and that much more at 64
            r"use prunus\.speed_up\(model, example\): 1\.0× to 8\.0× as fast",
        ),
        (
            [row(1, dense=1, compact_sparse=0.25, onnxruntime=0.5)],
            {},
            r"use prunus\.speed_up\(prunus\.compact\(model, example\), example\): 4\.0× as fast",
        ),
        (
            [row(1, dense=1, onnxruntime=0.1), row(64, dense=1, compact=0.9)],
            {"onnxruntime": "fails"},
            r"use prunus\.compact\(model, example\): 1\.0× to 1\.1× as fast",
        ),
    ],
)
def test_recommendation_is_the_fastest_variant_over_all_batches(
    rows: list[BenchRow], excluded: dict[str, str], advice: str
) -> None:
    bench = BenchReport(tuple(rows), excluded, {}, {})
    assert re.match(advice, bench.recommendation), bench.recommendation


def test_variant_with_wrong_outputs_is_excluded_and_threads_are_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prunus import bench as module

    model = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 2))
    with torch.no_grad():
        model.get_parameter("0.weight")[:200] = 0
    calls = iter([0.0, 1.0] + [0.0] * 9)  # the second is that of the compact network
    monkeypatch.setattr(module, "relative_difference", lambda *_: next(calls))
    before = torch.get_num_threads()
    done = module.bench(model, lambda n: torch.randn(n, 8), batches=[2], threads=[1], seconds=0.01)
    assert done.excluded["compact"] == "its outputs are off by 1 of the largest"
    assert "compact" not in done.rows[0].times
    assert torch.get_num_threads() == before
    with pytest.raises(PrunusError, match="no batch to time"):
        module.bench(model, lambda n: torch.randn(n, 8), batches=[])
    with pytest.raises(PrunusError, match="fails on the example inputs"):
        module.bench(model, lambda n: torch.randn(n, 9), threads=[1])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batches": [0, -3], "seconds": -1},
            "each of batches must be at least 1, but is 0; each of batches must be .* is -3; "
            "seconds must be at least 0, but is -1",
        ),
        ({"batches": [1.5]}, "each of batches must be a whole number of at least 1, but is 1.5"),
        ({"batches": 1}, "batches must be a list of numbers, but is 1"),
        ({"threads": [0]}, "each of threads must be at least 1, but is 0"),
        ({"example": torch.ones(1, 8)}, "example must be a function that returns inputs"),
        ({"model": lambda n: n}, "model must be a torch.nn.Module, but is of type function"),
    ],
)
def test_invalid_bench_arguments_are_reported_together(
    arguments: dict[str, Any], message: str
) -> None:
    from prunus import bench as module

    whole: dict[str, Any] = {"model": nn.Linear(8, 2), "example": lambda n: torch.randn(n, 8)}
    with pytest.raises(PrunusError, match=message):
        module.bench(**{**whole, **arguments})


def test_bench_accepts_array_of_batches_and_restores_inputs() -> None:
    from prunus import bench as module

    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 2))
    with torch.no_grad():
        model.get_parameter("1.weight")[:30] = 0
    example = torch.randn(4, 8)
    before = example.clone()
    done = module.bench(model, lambda _: example, batches=np.array([4]), threads=[1], seconds=0)
    assert torch.equal(example, before)
    assert {"dense", "compact", "onnxruntime"} <= done.rows[0].times.keys()
    assert max(done.rows[0].errors.values()) < 1e-4


def test_bench_supports_models_that_accumulate_in_their_inputs() -> None:
    from prunus import bench as module

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            said: torch.Tensor = self.head(self.embedding(words.add_(1)))
            return said

    done = module.bench(
        Counting(), lambda n: torch.full((n, 3), 7), batches=[2], threads=[1], seconds=0
    )
    assert max(done.rows[0].errors.values()) < 1e-4
    assert "dense" in done.rows[0].times


def test_bench_supports_a_file_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file({"a": torch.zeros(20, 20)}, path)
    outcome = prunus("bench", path, "--batch", 1, "--threads", 1)
    assert outcome.code == 0, outcome.err
    assert "1,600 bytes" in outcome.out


def test_invalid_files_and_options_are_rejected(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file({"a": torch.eye(40)}, path)
    for to in ("compact", "onnx"):
        prunus("export", path, "--to", to).refused("does not say by which recipe", "directory of a")
    model = run / "model.safetensors"
    prunus("export", run, "--to", "compact", "--out", model).refused("is the file to read")
    prunus("export", run, "--to", "onnx", "--out", tmp_path / "no" / "a").refused("cannot write")
    prunus("bench", tmp_path / "no").refused("there is no file or directory")
    assert prunus("bench", run, "--batch", 0).code == 2
    assert prunus("export", run, "--to", "zip").code == 2
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(model.read_bytes()[:-8])
    prunus("bench", damaged).refused("is not a whole safetensors file")
    save_sparse({"1.weight": torch.ones(2, 2)}, path, metadata={"recipe": "digits"})
    prunus("bench", path).refused("any.safetensors is damaged or absent", "Missing key")
    save_sparse({"1.weight": torch.ones(2, 2)}, path, metadata={"recipe": "gone"})
    prunus("bench", path).refused("there is no recipe 'gone'")
    save_sparse({"1.weight": torch.ones(2, 2)}, path, metadata={"recipe": "shakespeare-lm"})
    prunus("bench", path).refused("language model", "pretrained is not there")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "config.json").write_text("{}")
    prunus("bench", path).refused("pretrained is damaged, or not of a language model")
    csr = tmp_path / "csr"
    assert prunus("export", run, "--to", "csr", "--out", csr).code == 0
    prunus("bench", csr).refused("holds compressed rows", "that it was exported from")
    small = tmp_path / "small"
    assert prunus("export", run, "--to", "compact", "--out", small).code == 0
    prunus("export", small, "--to", "compact", "--out", path).refused("is compact already")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left: torch.Tensor, *, right: torch.Tensor) -> dict[str, Any]:
        return {"sum": self.one(left) + self.other(right), "left": left.sum(-1)}


def test_onnx_supports_keyword_arguments_and_several_outputs(tmp_path: Path) -> None:
    model = Two()
    example = {"left": torch.randn(3, 3), "right": torch.randn(3, 5)}
    written = to_onnx(model, example, tmp_path / "a.onnx")
    assert written.any_batch
    other = {"right": torch.randn(7, 5), "left": torch.randn(7, 3)}  # in another order
    made = OnnxSession(tmp_path / "a.onnx", threads=1).outputs((), other)
    right = model(**other)
    torch.testing.assert_close(made[0], right["sum"])
    torch.testing.assert_close(made[1], right["left"])


def test_onnx_fixes_the_batch_size_only_if_the_model_does(tmp_path: Path) -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = super().forward(x.reshape(2, -1))  # type: ignore[no-untyped-call]
            return made

    model = Fixed(nn.Linear(3, 3))
    assert not to_onnx(model, torch.randn(2, 3), tmp_path / "a.onnx").any_batch
    x = torch.randn(2, 3)
    (made,) = OnnxSession(tmp_path / "a.onnx").outputs((x,), {})
    torch.testing.assert_close(made, model(x).detach())
    # The size of 1 is as free as others, though torch.export would take it for a number.
    assert to_onnx(model[0], torch.randn(1, 3), tmp_path / "b.onnx").any_batch
    x = torch.randn(5, 3)
    (made,) = OnnxSession(tmp_path / "b.onnx").outputs((x,), {})
    torch.testing.assert_close(made, model[0](x).detach())


def test_onnxruntime_failures_raise_user_error(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(3, 3), nn.GELU()).to(torch.bfloat16)
    with pytest.raises(PrunusError, match="onnxruntime|cannot be exported"):
        to_onnx(wide, torch.randn(2, 3, dtype=torch.bfloat16), tmp_path / "a.onnx")
    to_onnx(nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), tmp_path / "a.onnx")
    session = OnnxSession(tmp_path / "a.onnx")
    for wrong in ((torch.ones(2, 4),), (torch.ones(2, 3), torch.ones(2, 3)), ()):
        with pytest.raises(PrunusError, match="onnxruntime fails on the inputs"):
            session.outputs(wrong, {})
    (tmp_path / "b.onnx").write_text("no network")
    with pytest.raises(PrunusError, match="onnxruntime rejects the network"):
        OnnxSession(tmp_path / "b.onnx")


def test_failed_onnx_export_keeps_the_old_file(tmp_path: Path) -> None:
    class Branching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return made if x.sum() > 0 else -made

    path = tmp_path / "a.onnx"
    path.write_text("old")
    with pytest.raises(PrunusError, match="Branching cannot be exported: "):
        to_onnx(Branching(nn.Linear(3, 3)), torch.randn(2, 3), path)
    assert path.read_text() == "old"
    with pytest.raises(PrunusError, match="fails on the example inputs"):
        to_onnx(nn.Linear(3, 3), torch.randn(2, 4), path)
