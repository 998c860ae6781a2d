"""The plot of a pruner's history."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from prunus import ArgumentError, ArgumentTypeError, History, Validation
from prunus.report import plot_history


def validation(step: int, metric: float | None, sparsity: float, **changes: Any) -> Validation:
    fields = {"floor": 0.9, "met": True, "best": True, "removed": 0, "sparsity_after": sparsity}
    return Validation(step=step, metric=metric, sparsity=sparsity, **{**fields, **changes})


HISTORY = History(
    [
        validation(10, 0.95, 0.0, removed=5, sparsity_after=0.5),
        validation(20, 0.93, 0.5, removed=2, sparsity_after=0.7),
        validation(30, math.nan, 0.7, best=False, met=False),
        validation(40, 0.85, 0.7, best=False, met=False, restored=True, sparsity_after=0.5),
        validation(50, 0.92, 0.5, best=False),
    ]
)


def values(axes: Axes) -> list[list[float]]:
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines]


def test_metric_sparsity_and_floor_are_those_of_the_history() -> None:
    upper, lower = plot_history(HISTORY, metric="accuracy").axes
    lines = values(upper)
    assert any([y for y in line if not math.isnan(y)] == [0.95, 0.93, 0.85, 0.92] for line in lines)
    assert any(set(line) == {0.9} for line in lines)
    assert [0.0, 0.5, 0.7, 0.7, 0.5] in values(lower)
    assert lower.get_xlabel() == "validation"
    assert {"floor 0.9000", "delivered 0.9300"} <= {text.get_text() for text in upper.texts}


def test_a_history_without_metrics_is_rejected() -> None:
    for history in (History(), History([validation(1, None, 0.0, best=False)])):
        with pytest.raises(ArgumentError, match=r"call pruner\.step\(metric\)"):
            plot_history(history)
    with pytest.raises(ArgumentTypeError, match=r"history must be a History.*pruner\.history"):
        plot_history([0.9])  # type: ignore[arg-type]
