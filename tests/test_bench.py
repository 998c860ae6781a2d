"""Tests of ``prunus.bench`` and of the command ``prunus bench``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.commands import prunus
from helpers.planted_timings import plant_timings
from helpers.sparse_models import sparsified
from prunus import ArgumentError, PrunusError
from prunus.bench import (
    KINDS,
    BenchReport,
    BenchRow,
    MatrixLayers,
    bench,
    onnx_files,
    timing,
    variants,
)
from prunus.recipes.run.directory import RunDirectory

EXACT = ("compact", "sparse", "compact, sparse", "onnxruntime")
"""The variants that need no compilation."""


def eights(batch: int) -> torch.Tensor:
    return torch.randn(batch, 8)


@pytest.mark.frameworks
def test_bench_reports_consistent_timings_and_a_recommendation(finished_run: Path) -> None:
    exact = "compact;sparse;onnxruntime"
    batches = ("--batch", 1, "--batch", 32)
    outcome = prunus("bench", finished_run, *batches, "--threads", 1, "--variants", exact)
    assert outcome.code == 0, outcome.err
    row = re.compile(
        r"^  (?P<name>[a-z][\w, ]*?) +(?P<ms>[\d.e-]+) +(?P<low>[\d.e-]+) to (?P<high>[\d.e-]+) +"
        r"(?P<faster>[\d.]+)×",
        re.M,
    )
    rows = list(row.finditer(outcome.out))
    names = [row["name"] for row in rows]
    assert names.count("dense") == names.count("compact") == names.count("onnxruntime") == 2
    assert re.findall(r"^batch \d+, \d+ threads?\b", outcome.out, re.M) == [
        "batch 1, 1 thread",
        "batch 32, 1 thread",
    ]
    dense = 0.0
    for found in rows:
        dense = float(found["ms"]) if found["name"] == "dense" else dense
        assert float(found["faster"]) == pytest.approx(dense / float(found["ms"]), rel=0.02)
        assert float(found["low"]) <= float(found["ms"]) <= float(found["high"])
    assert re.search(r"^(use .* as fast as the dense network|keep the dense)", outcome.out, re.M)
    assert "times the lower bound of any file" in outcome.out
    written = RunDirectory(finished_run).read_latencies()
    assert written is not None
    (finished_run / "bench.json").unlink()  # other tests compare the files of the run
    assert written["environment"]["torch"] == torch.__version__
    report = BenchReport.from_dict(written)
    assert report.recommend(finished_run) in outcome.out
    assert [row.batch for row in report.rows] == [1, 32]


@pytest.mark.frameworks
def test_bench_of_a_plain_file_times_its_matrices(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file({"a": torch.eye(40), "b": torch.ones(3), "c": torch.zeros(4, 2, 3)}, path)
    outcome = prunus("bench", path, "--batch", 2, "--threads", 1, "--variants", "sparse")
    assert outcome.code == 0, outcome.err
    assert "does not name its recipe" in outcome.out
    assert "call prunus.bench.bench(model, example) in Python" in outcome.out
    assert "1,624 parameters" in outcome.out
    save_file({"b": torch.ones(3)}, path)
    prunus("bench", path).refused("there is no matrix in float32")


def test_tensors_without_a_float32_matrix_are_an_argument_error() -> None:
    with pytest.raises(ArgumentError, match="there is no matrix in float32"):
        MatrixLayers({"b": torch.ones(3)})


def no_speed_up(*_: Any, **__: Any) -> Any:
    """Raise the error by which a variant is excluded."""
    raise PrunusError("not timed here")


class NoOnnxFiles:
    """What excludes onnxruntime, to which most of the time of a test would go."""

    def __init__(self, *_: Any) -> None: ...

    def session(self, *_: Any) -> Any:
        """Raise the error by which a variant is excluded."""
        raise PrunusError("not timed here")

    quantized_session = session


def row(batch: int, **milliseconds: float) -> BenchRow:
    """Return a row of planted timings; underscores in names of variants become commas."""
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
            {},  # sparse layers gain nothing at a batch of 1, and 8× at 64
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
    report = BenchReport(tuple(rows), excluded, {}, {})
    assert re.match(advice, report.recommendation), report.recommendation


def test_recommendation_for_a_run_names_the_command_where_there_is_one() -> None:
    def advice(**milliseconds: float) -> str:
        report = BenchReport((row(1, dense=1, **milliseconds),), {}, {}, {})
        assert "prunus export" not in report.recommendation
        return report.recommend(Path("my runs/a"))

    assert advice(compact=0.5).startswith("use prunus export 'my runs/a' --to compact: 2.0×")
    onnx = "use prunus export 'my runs/a' --to onnx and onnxruntime: 2.0×"
    assert advice(onnxruntime=0.5).startswith(onnx)
    assert advice(sparse=0.5).startswith("use prunus.speed_up(model, example) in Python: 2.0×")
    assert advice().startswith("keep the dense network")


def test_speed_up_is_that_of_most_rounds_when_others_are_disturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 2))
    with torch.no_grad():
        model.get_parameter("0.weight")[:200] = 0
    monkeypatch.setattr(timing, "OnnxFiles", NoOnnxFiles)
    monkeypatch.setattr(variants, "speed_up", no_speed_up)
    # The dense network is disturbed in most rounds: its median alone is 90 ms, that of the compact
    # network 1 ms. In five rounds of seven both turns are alike.
    dense = [[2.0], [90.0], [90.0], [90.0], [2.0], [2.0], [880.0]]
    compact = [[1.0], [45.0], [1.0], [1.0], [1.0], [1.0], [440.0]]
    plant_timings(monkeypatch, dense, compact)
    done = bench(model, eights, batches=[2], threads=[1], seconds=0, variants=EXACT)
    times = done.rows[0].times
    assert times["dense"]["median_ms"] == pytest.approx(90)
    assert done.rows[0].times_faster["compact"] == pytest.approx(2)
    assert done.rows[0].disturbed == ("compact",)
    assert re.fullmatch(
        r"use prunus\.compact\(model, example\): 2\.0× as fast as the dense network; other "
        r"processes disturbed the timings, so repeat them on an idle machine",
        done.recommendation,
    )
    plant_timings(monkeypatch, [[2.0]] * 5, [[1.0]] * 5)
    done = bench(model, eights, batches=[2], threads=[1], seconds=0, variants=EXACT)
    assert done.rows[0].disturbed == ()
    assert done.recommendation.endswith("2.0× as fast as the dense network")


@pytest.mark.frameworks
def test_variant_with_wrong_outputs_is_excluded_and_threads_are_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 2))
    with torch.no_grad():
        model.get_parameter("0.weight")[:200] = 0
    calls = iter([0.0, 1.0] + [0.0] * 9)  # the second is for the compact network
    monkeypatch.setattr(timing, "relative_difference", lambda *_: next(calls))
    before = torch.get_num_threads()
    done = bench(model, eights, batches=[2], threads=[1], seconds=0.01, variants=EXACT)
    assert done.excluded["compact"] == "its outputs are off by 1 of the largest"
    assert "compact" not in done.rows[0].times
    assert torch.get_num_threads() == before
    with pytest.raises(PrunusError, match="no batch to time"):
        bench(model, lambda n: torch.randn(n, 8), batches=[])
    with pytest.raises(PrunusError, match="fails on the example inputs"):
        bench(model, lambda n: torch.randn(n, 9), threads=[1])
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
        ({"variants": ["spars"]}, "there is no variant 'spars'. Did you mean sparse"),
        ({"variants": ["bf16"]}, "The variants are 'compact', 'sparse', 'compact, sparse', "),
        ({"variants": "sparse"}, r"a list of names, but is 'sparse': pass \['sparse'\]"),
        (
            {"floor": "most", "evaluate": 3},
            "evaluate must be a function .*; floor must be a number",
        ),
        ({"example": torch.ones(1, 8)}, "example must be a function that returns inputs"),
        ({"model": lambda n: n}, "model must be a torch.nn.Module, but is of type function"),
    ],
)
def test_invalid_bench_arguments_are_reported_together(
    arguments: dict[str, Any], message: str
) -> None:
    whole: dict[str, Any] = {"model": nn.Linear(8, 2), "example": lambda n: torch.randn(n, 8)}
    with pytest.raises(PrunusError, match=message):
        bench(**{**whole, **arguments})


@pytest.mark.frameworks
def test_bench_accepts_array_of_batches_and_restores_inputs() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 2))
    with torch.no_grad():
        model.get_parameter("1.weight")[:30] = 0
    example = torch.randn(4, 8)
    before = example.clone()
    done = bench(
        model, lambda _: example, batches=np.array([4]), threads=[1], seconds=0, variants=EXACT
    )
    assert torch.equal(example, before)
    assert {"dense", "compact", "onnxruntime"} <= done.rows[0].times.keys()
    assert max(done.rows[0].errors.values()) < 1e-4


@pytest.mark.frameworks
def test_bench_supports_models_that_accumulate_in_their_inputs() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.embedding(tokens.add_(1)))
            return logits

    done = bench(
        Counting(),
        lambda n: torch.full((n, 3), 7),
        batches=[2],
        threads=[1],
        seconds=0,
        variants=EXACT,
    )
    assert max(done.rows[0].errors.values()) < 1e-4
    assert "dense" in done.rows[0].times


@pytest.mark.frameworks
def test_bench_supports_a_file_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file({"a": torch.zeros(20, 20)}, path)
    outcome = prunus("bench", path, "--batch", 1, "--threads", 1, "--variants", "sparse")
    assert outcome.code == 0, outcome.err
    assert "1,600 bytes" in outcome.out


def test_report_is_restored_from_its_dictionaries() -> None:
    times = {"median_ms": 2.0, "quartile_1_ms": 1.5, "quartile_3_ms": 2.5}
    row = BenchRow(8, 2, {"dense": times, "sparse": times}, {"sparse": 1e-7}, ("a",), ("sparse",))
    report = BenchReport((row,), {"compact": "no"}, {"dense": 3}, {"dense": 12.0, "bound": 5.5})
    content = json.loads(json.dumps(report.as_dict()))
    assert BenchReport.from_dict(content) == report
    content["rows"][0]["times"]["dense"]["median_ms"] = 0
    with pytest.raises(ValueError, match="the time of the dense network must be above 0"):
        BenchReport.from_dict(content)


RIVALS = ("compiled", "bfloat16, autocast", "bfloat16", "onnxruntime, int8")


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


def inputs(batch: int) -> torch.Tensor:
    return torch.randn(batch, 16)


@pytest.mark.frameworks
@pytest.mark.slow
def test_rivals_compute_the_same_network_in_other_types_and_engines() -> None:
    model = classifier()
    report = bench(
        model, inputs, batches=[8], threads=[1], seconds=0.05, variants=[*RIVALS, "onnxruntime"]
    )
    (row,) = report.rows
    assert set(row.times) == {"dense", *RIVALS, "onnxruntime"}, report.excluded
    assert row.errors["compiled"] < 1e-5
    # bfloat16 has 8 significant bits, int8 has 255 values; neither is exact, and both are close.
    for name in ("bfloat16, autocast", "bfloat16", "onnxruntime, int8"):
        assert 1e-5 < row.errors[name] < 0.05, name


@pytest.mark.frameworks
def test_zeros_of_a_sparse_network_stay_zeros_in_int8(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = classifier()
    with torch.no_grad():
        weight = model.get_parameter("0.weight")
        weight.mul_(torch.rand_like(weight) > 0.9)
    files = onnx_files.OnnxFiles(model, inputs, tmp_path)
    files.quantized_session(4, 1)
    (path,) = tmp_path.glob("*.int8.onnx")
    stored = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    (found,) = [t for t in stored if t.dtype == np.int8 and t.size == weight.numel()]
    zeros = (weight == 0).numpy()
    assert not found[zeros if found.shape == zeros.shape else zeros.T].any()
    assert np.count_nonzero(found) > 0.9 * np.count_nonzero(weight.detach().numpy())


@pytest.mark.frameworks
@pytest.mark.slow
def test_scales_in_int8_come_from_the_inputs_to_calibrate_by(tmp_path: Path) -> None:
    model, x = classifier(), 100 * inputs(64)
    errors = []
    for calibration in ([], [x]):
        folder = tmp_path / str(len(calibration))
        folder.mkdir()
        files = onnx_files.OnnxFiles(model, inputs, folder, calibration)
        (actual,) = files.quantized_session(64, 1).outputs((x,), {})
        expected = model(x).detach()
        errors.append(float((actual - expected).abs().max() / expected.abs().max()))
    assert errors[0] > 0.5  # activations beyond those of the examples are cut off
    assert errors[1] < 0.05


def test_metrics_of_reduced_precision_are_measured_and_judged_by_the_floor() -> None:
    model, x = classifier(), inputs(256)
    labels = model(x).argmax(1)
    seen = []

    def accuracy(network: nn.Module) -> float:
        seen.append(type(network).__name__)
        return float((network(x).argmax(1) == labels).float().mean()) if len(seen) != 2 else 0.5

    report = bench(
        model,
        inputs,
        batches=[8],
        threads=[1],
        seconds=0,
        variants=["bfloat16", "bfloat16, autocast"],
        evaluate=accuracy,
        floor="dense-5%",
    )
    assert report.metrics["dense"] == 1.0
    assert seen == ["Sequential", "Autocast", "Converted"]
    assert report.metrics["bfloat16, autocast"] == 0.5
    assert report.below_floor == ("bfloat16, autocast",)
    assert report.metrics["bfloat16"] > 0.95


SPARSE_TYPES = ("sparse, bfloat16", "sparse, int8")


def test_sparse_layers_in_bfloat16_and_int8_are_recommended_by_their_metric(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = sparsified(classifier(), 0.6), 3 * inputs(256)
    labels = model(x).argmax(1)

    def timed(**options: Any) -> BenchReport:
        # Of dense layers, of sparse ones in float32, in the lower type; and of the variants.
        plant_timings(monkeypatch, [1.0], [0.6], [0.4])
        return bench(
            model, inputs, batches=[8], threads=[1], seconds=0, variants=SPARSE_TYPES, **options
        )

    report = timed(
        evaluate=lambda network: float((network(x).argmax(1) == labels).float().mean()),
        floor="dense-5%",
        calibration=[x],
    )
    (row,) = report.rows
    assert set(row.times) == {"dense", *SPARSE_TYPES}, report.excluded
    assert all(1e-5 < row.errors[name] < 0.1 for name in SPARSE_TYPES)
    assert set(report.metrics) == {"dense", *SPARSE_TYPES}
    assert report.below_floor == ()
    call = r"prunus.speed_up\(model, example, dtype=torch.int8, calibration=inputs\)"
    assert re.match(f"use {call}: 2.5× as fast", report.recommendation)
    unmeasured = timed().recommendation
    assert re.match(f"keep the dense network.*; {call} is 2.5× as fast.*its metric", unmeasured)


def test_sparse_layers_that_are_faster_in_float32_are_no_variant_in_another_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_timings(monkeypatch, [1.0], [0.6], [0.7])
    report = bench(
        sparsified(classifier(), 0.6),
        inputs,
        batches=[8],
        threads=[1],
        seconds=0,
        variants=SPARSE_TYPES,
    )
    assert set(report.rows[0].times) == {"dense"}
    assert not set(SPARSE_TYPES) & set(report.excluded)


def test_recommendation_needs_the_metric_of_a_network_in_bfloat16() -> None:
    rows = (row(1, dense=1, sparse=0.5, bfloat16=0.2),)
    advice = BenchReport(rows, {}, {}, {}).recommendation
    assert advice.startswith("use prunus.speed_up(model, example): 2.0× as fast")
    assert advice.endswith(
        "; model.to(torch.bfloat16) is 5.0× as fast, with outputs off by 0 of the largest: measure "
        "its metric"
    )
    measured = BenchReport(rows, {}, {}, {}, {"dense": 0.9, "bfloat16": 0.9})
    assert measured.recommendation.startswith("use model.to(torch.bfloat16): 5.0× as fast")
    below = BenchReport(rows, {}, {}, {}, {"dense": 0.9, "bfloat16": 0.5}, ("bfloat16",))
    assert below.recommendation == (
        "use prunus.speed_up(model, example): 2.0× as fast as the dense network"
    )


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_that_fails_is_excluded_with_its_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("not here" + chr(10) + "in detail")

    if name in variants._BUILDERS:
        monkeypatch.setitem(variants._BUILDERS, name, lambda _: Failing())
    else:
        monkeypatch.setattr("onnxruntime.quantization.quantize_static", fail)
    report = bench(classifier(), inputs, batches=[2], threads=[1], seconds=0, variants=[name])
    assert "ValueError: not here" in report.excluded[name]
    assert "in detail" not in report.excluded[name]
    assert set(report.rows[0].times) == {"dense"}


class Failing(nn.Module):
    """A network that fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not here" + chr(10) + "in detail")


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    report = bench(classifier(), inputs, batches=[2], threads=[1], seconds=0, variants=["compiled"])
    assert report.excluded == {
        "compiled": "torch.compile needs a C++ compiler, such as g++",
        "compact": "no neuron, channel, head or input is dead",
    }


def test_names_of_variants_are_their_keys() -> None:
    assert [kind.name for kind in KINDS.values()] == list(KINDS)
