"""The history of a pruner: what its records hold, and that a resumed run has it."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus import (
    CheckpointError,
    History,
    IterativePruning,
    MagnitudeScore,
    NonFiniteError,
    Pruner,
    PrunusError,
    RelevancePenalty,
)
from prunus._utils.files import load_tree, save_tree

METRICS = [0.9, 0.8, 0.6, 0.7]


def halving_pruner(**options: Any) -> Pruner:
    """Return a pruner of 100 weights that removes half of those left at each metric above 0.65."""
    torch.manual_seed(0)
    model = nn.Linear(10, 10, bias=False)
    options = {"penalty": None, "score": MagnitudeScore(), **options}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Pruner(model, optimizer, schedule=IterativePruning(fraction=0.5), floor=0.65, **options)


def take_step(pruner: Pruner) -> None:
    pruner.optimizers[0].zero_grad()
    pruner.model(torch.ones(1, 10)).square().sum().backward()
    pruner.optimizers[0].step()


def test_each_record_pairs_the_metric_with_the_sparsity_that_was_measured() -> None:
    pruner = halving_pruner()
    for metric in METRICS:
        take_step(pruner)
        pruner.step(metric)
    rows = [(v.step, v.metric, v.sparsity, v.removed, v.sparsity_after) for v in pruner.history]
    assert rows == [
        (1, 0.9, 0.0, 50, 0.5),
        (2, 0.8, 0.5, 25, 0.75),
        (3, 0.6, 0.75, 0, 0.75),
        # 25 weights are left, of which 12 are removed.
        (4, 0.7, 0.75, 12, 0.87),
    ]
    assert [v.met for v in pruner.history] == [True, True, False, True]
    assert pruner.history[-1].change == pytest.approx(0.1)


def test_a_resumed_pruner_has_the_whole_history(tmp_path: Path) -> None:
    whole, first = (
        halving_pruner(penalty=RelevancePenalty()),
        halving_pruner(penalty=RelevancePenalty()),
    )
    for pruner in (whole, first):
        for metric in METRICS[:2]:
            take_step(pruner)
            pruner.step(metric)
    save_tree(tmp_path / "state", first.state_dict())
    second = halving_pruner(penalty=RelevancePenalty())
    second.load_state_dict(load_tree(tmp_path / "state"))
    second.model.load_state_dict(first.model.state_dict())
    for pruner in (whole, second):
        for metric in METRICS[2:]:
            take_step(pruner)
            pruner.step(metric)
    assert whole.history[1].penalty is not None
    assert second.history == whole.history
    assert len(second.history) == 4


def test_a_rejected_metric_is_not_recorded() -> None:
    pruner = halving_pruner()
    with pytest.raises(NonFiniteError):
        pruner.step(float("nan"))
    assert len(pruner.history) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("history"),
        lambda state: state.update(history={}),
        lambda state: state.update(history="[{"),
        lambda state: state.update(history="[3]"),
        lambda state: state.update(history=state["history"].replace("metric", "other")),
    ],
    ids=["absent", "of another type", "no JSON", "number", "has another value"],
)
def test_a_state_with_a_damaged_history_is_rejected_whole(damage: Any) -> None:
    pruner = halving_pruner()
    take_step(pruner)
    pruner.step(0.9)
    state = copy.deepcopy(pruner.state_dict())
    damage(state)
    other = halving_pruner()
    with pytest.raises(CheckpointError, match="history"):
        other.load_state_dict(state)
    assert other.sparsity == 0
    assert len(other.history) == 0


def test_the_table_has_a_row_for_each_validation(tmp_path: Path) -> None:
    pruner = halving_pruner(penalty=RelevancePenalty())
    for metric in METRICS:
        take_step(pruner)
        pruner.step(metric)
    pruner.history.to_csv(tmp_path / "history.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "history.csv").read_text())))
    assert [float(row["metric"]) for row in rows] == METRICS
    assert [float(row["sparsity"]) for row in rows] == [0.0, 0.5, 0.75, 0.75]
    assert rows[0]["change"] == rows[0]["predicted_cost"] == ""
    assert rows[0]["mean_coefficient"] == ""  # the penalty has not acted yet
    penalty = pruner.history[1].penalty
    assert penalty is not None
    assert float(rows[1]["mean_coefficient"]) == penalty.mean_coefficient
    with pytest.raises(PrunusError, match="cannot write"):
        pruner.history.to_csv(tmp_path / "absent" / "history.csv")


def test_a_slice_of_a_history_is_a_history() -> None:
    pruner = halving_pruner()
    for metric in METRICS:
        pruner.step(metric)
    assert isinstance(pruner.history[1:], History)
    assert [v.metric for v in pruner.history[1:3]] == METRICS[1:3]
    assert repr(pruner.history[:0]) == "History(no validations)"
