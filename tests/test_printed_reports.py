"""The tables that ``print`` of a report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus import History, Masks, PenaltyReport, Validation, select
from prunus.bench import BenchReport, BenchRow
from prunus.compaction.report import CompactionReport, ResizedTensor
from prunus.export.report import ExportReport
from prunus.export.sparse_format import TensorInfo
from prunus.fitting.fit import FitResult
from prunus.runtime import SpeedUpReport
from prunus.runtime.report import LayerTiming
from studies.stubs import study, summary


def validation(step: int, **values: Any) -> Validation:
    own: dict[str, Any] = {
        "metric": 0.97,
        "sparsity": 0.5,
        "floor": 0.95,
        "met": True,
        "best": True,
        "removed": 1200,
        "sparsity_after": 0.625,
    }
    return Validation(step=step, **{**own, **values})


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 10, bias=False), nn.Linear(10, 200, bias=False))


def speed_up_report() -> SpeedUpReport:
    timings = [
        LayerTiming("0", "Linear", (4, 4), 0.05, 2.0, 0.5, True, ()),
        LayerTiming("block.fc", "Conv2d", (4, 4), 1.0, float("nan"), float("nan"), False, ()),
    ]
    excluded = {f"rnn.{n}": "it has no sparse counterpart" for n in range(7)}
    return SpeedUpReport(tuple(timings), excluded, 4.0, 2.5, 1, 1e-7, disturbed=True)


def masks() -> Masks:
    found = Masks(select(model()))
    found["0.weight"][:] = False
    found["1.weight"][:50] = False
    return found


def bench_report() -> BenchReport:
    def times(ms: float) -> dict[str, float]:
        return {"median_ms": ms, "quartile_1_ms": ms, "quartile_3_ms": ms}

    row = BenchRow(64, 1, {"dense": times(2.0), "compact, sparse": times(0.5)}, {}, ())
    return BenchReport((row,), {"onnxruntime": "it is not installed"}, {}, {})


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (
            validation(
                500,
                predicted_cost=0.01234,
                penalty=PenaltyReport(
                    mean_coefficient=0.1, irrelevant=0.2, shrink=None, weight_decay=0.0
                ),
            ),
            [
                "step  metric   floor  sparsity  removed   after  predicted cost  state",
                " 500  0.9700  0.9500    0.5000    1,200  0.6250           0.012   best",
            ],
        ),
        (
            History(
                [
                    validation(5, metric=None, floor=None, removed=0, best=False, met=False),
                    validation(1000, met=False, best=False, metric=float("nan")),
                ]
            ),
            [
                " step        metric   floor  sparsity  removed   after  predicted cost   state",
                "    5             –       –    0.5000        0  0.6250               –",
                "1,000  not a number  0.9500    0.5000    1,200  0.6250               –  missed",
            ],
        ),
        (History(), ["no validations"]),
        (
            select(model()),
            [
                "tensor      shape  prunable",
                "0.weight     10×4        40",
                "1.weight   200×10     2,000",
                "2 tensors             2,040",
            ],
        ),
        (
            masks(),
            [
                "tensor     prunable   kept  density",
                "0.weight         40      0       0%",
                "1.weight      2,000  1,500    75.0%",
                "2 tensors     2,040  1,500    73.5%",
            ],
        ),
        (
            speed_up_report(),
            [
                "layer     type    density  dense ms  sparse ms  faster    runs",
                "0         Linear     5.0%         2        0.5   4.00×  sparse",
                "block.fc  Conv2d     100%         –          –       –   dense",
                "network                           4        2.5   1.60×",
                *(f"rnn.{n} stays dense: it has no sparse counterpart" for n in range(5)),
                "2 more layers with zeros stay dense",
                "other processes disturbed the timings: repeat them on an idle machine",
            ],
        ),
        (
            CompactionReport(
                (ResizedTensor("0.weight", (10, 4), (7, 4)), ResizedTensor("b", (10,), (7,))),
                (),
                (),
                ("the size of x is read",) * 6,
                {},
                {},
                2040,
                1500,
                2e-7,
            ),
            [
                "2,040 parameters, 1,500 without dead units; outputs differ by at most 2e-07 of "
                "the largest",
                "tensor    before  after",
                "0.weight    10×4    7×4",
                "b             10      7",
                *["kept: the size of x is read"] * 5,
                "kept for other reasons: 1",
            ],
        ),
        (
            ExportReport(
                Path("a"),
                Path("b"),
                5000,
                1000,
                0.0,
                [TensorInfo("0.weight", (10, 4), torch.float32, torch.float32, "bitmap", 5, 25)],
            ),
            [
                "tensor    stored as     bytes, all elements  bytes",
                "0.weight  bitmap                        160     25",
                "the file  5.0× smaller                5,000  1,000",
            ],
        ),
        (
            bench_report(),
            [
                "network          batch  threads   ms  faster",
                "dense               64        1    2   1.00×",
                "compact, sparse     64        1  0.5   4.00×",
                "onnxruntime excluded: it is not installed",
                "use prunus.speed_up(prunus.compact(model, example), example): 4.0× as fast as "
                "the dense network",
            ],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_report_is_printed_as_an_aligned_table(report: object, lines: list[str]) -> None:
    assert str(report).splitlines() == lines


def test_states_of_a_validation_are_named() -> None:
    assert str(validation(5, met=False, best=False, restored=True)).endswith("  missed, restored")
    assert str(validation(5, floor=None, met=False)).endswith("  best")


def test_result_of_a_fit_is_printed_with_its_history() -> None:
    result = FitResult(0.98, 0.9725, 0.625, History([validation(5)]))
    first, *others = str(result).splitlines()
    assert first == "metric 0.9725, before the training 0.9800; sparsity 0.6250"
    assert others == str(result.history).splitlines()


def test_long_reports_are_short() -> None:
    history = History([validation(step) for step in range(500)])
    assert len(str(history).splitlines()) == 22
    assert "… 480 more" in str(history)


def test_printed_table_of_a_study_has_its_legend() -> None:
    from prunus.studies import Cell

    cells = {Cell("prunus", 10.0, seed): summary(seed, 0.9) for seed in range(2)}
    table = study(cells).table()
    first, *_, last = str(table).splitlines()
    assert first.startswith("network  ratio  sparsity")
    assert last == table.legend
