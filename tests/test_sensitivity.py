"""The sensitivity of a model: what is measured, and that nothing is changed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.commands import prunus
from helpers.comparisons import assert_states_identical
from prunus import (
    ArgumentError,
    ArgumentTypeError,
    FisherScore,
    NonFiniteError,
    PrunusError,
    TargetAllocation,
    select,
    sensitivity,
)


def two_layers() -> nn.Sequential:
    """Return a network whose output for ones is the sum over hidden units of in-sum times out."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.1], [0.2, 2.0]])
    model[1].weight.data = torch.tensor([[3.0, 1.0]])
    return model


def test_each_tensor_is_pruned_alone_and_the_smallest_weights_first() -> None:
    model = two_layers()
    found = sensitivity(model, lambda: model(torch.ones(1, 2)).item(), [0.25, 0.5])
    assert found.metric == pytest.approx(3 * 1.1 + 2.2)
    measured = {(r.name, r.sparsity): r.metric for r in found.records}
    assert measured == {
        ("0.weight", 0.25): pytest.approx(3 * 1.0 + 2.2),
        ("0.weight", 0.5): pytest.approx(3 * 1.0 + 2.0),
        # Half of a weight is rounded to the even number, none.
        ("1.weight", 0.25): pytest.approx(found.metric),
        ("1.weight", 0.5): pytest.approx(3 * 1.1),
    }
    for record in found.records:
        assert record.change == pytest.approx(record.metric - found.metric)


def test_every_bit_is_restored_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = 0

    def evaluate() -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of data")
        return float(model(torch.randn(8, 4)).sum())  # the batch norm counts it

    with pytest.raises(RuntimeError, match="out of data"):
        sensitivity(model, evaluate)
    # The call for the model as it is changed the batch norm, as any call of the user's would.
    after = {name: tensor for name, tensor in model.state_dict().items() if "1." not in name}
    assert_states_identical({name: before[name] for name in after}, after)
    assert model.training
    assert int(model.state_dict()["1.num_batches_tracked"]) == 1


def test_targets_are_the_largest_tolerable_sparsities() -> None:
    model = two_layers()
    found = sensitivity(model, lambda: model(torch.ones(1, 2)).item(), [0.25, 0.5, 1.0])
    assert found.targets(0.4) == {"0.weight": 0.25, "1.weight": 0.25}
    assert found.targets(0.5000001) == {"0.weight": 0.5, "1.weight": 0.25}
    assert found.targets(0, mode="min") == {"0.weight": 1.0, "1.weight": 1.0}
    TargetAllocation(found.targets(0.4)).bind(model, select(model))


def test_the_table_shows_changes_with_their_digits(tmp_path: Path) -> None:
    model = two_layers()
    found = sensitivity(model, lambda: model(torch.ones(1, 2)).item() / 1000, [0.25, 0.5])
    assert str(found).splitlines() == [
        "metric 0.0055; change if a single tensor has a sparsity of",
        "tensor    weights      0.25       0.5",
        "0.weight        4  -0.00030  -0.00050",
        "1.weight        2  +0.00000  -0.00220",
    ]
    found.to_csv(tmp_path / "sensitivity.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sensitivity.csv").read_text())))
    assert [row["name"] for row in rows] == ["0.weight", "0.weight", "1.weight", "1.weight"]
    assert float(rows[3]["change"]) == found.records[3].change


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsities": []}, ArgumentError, "sparsities must have at least one, but is empty"),
        ({"sparsities": [0.5, 90]}, ArgumentError, "must be .* but is 90: pass 0.9 for 90 percent"),
        ({"sparsities": 0.5}, ArgumentTypeError, "sparsities must be a sequence"),
        ({"evaluate": 0.98}, PrunusError, "evaluate must be a function, but is 0.98"),
        ({"evaluate": lambda: "98%"}, ArgumentTypeError, r"the result of evaluate\(\)"),
        ({"evaluate": lambda: float("nan")}, NonFiniteError, "must be finite, but is nan"),
        ({"score": FisherScore()}, ArgumentError, "FisherScore needs gradients"),
        ({"model": 3}, PrunusError, "model"),
    ],
)
def test_bad_input_is_rejected(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    valid: dict[str, Any] = {"model": two_layers(), "evaluate": lambda: 1.0}
    with pytest.raises(error, match=message):
        sensitivity(**{**valid, **arguments})


def test_the_command_measures_the_dense_network_of_a_run(
    finished_run: Path, tmp_path: Path
) -> None:
    table = tmp_path / "sensitivity.csv"
    outcome = prunus("sensitivity", finished_run, "--sparsities", "0,0.5,1", "--csv", table)
    assert outcome.code == 0
    dense = json.loads((finished_run / "summary.json").read_text())["dense"]["validation"]
    assert outcome.out.startswith(f"validation accuracy: metric {dense:.6g}; change if")
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    # Sparsity 0 changes nothing. Without a whole layer, all images get the same class.
    changes = {(row["name"], row["sparsity"]): float(row["change"]) for row in rows}
    assert {change for (_, sparsity), change in changes.items() if sparsity == "0.0"} == {0.0}
    names = {name for name, _ in changes}
    assert all(changes[name, "1.0"] < -0.5 for name in names if name.endswith("weight"))


def test_the_command_rejects_bad_input(finished_run: Path, tmp_path: Path) -> None:
    prunus("sensitivity", tmp_path).refused("there is no run in")
    prunus("sensitivity", finished_run, "--sparsities", "half").refused(
        "--sparsities must be numbers separated by commas, such as 0.5,0.9, but is 'half'"
    )
    prunus("sensitivity", finished_run, "--sparsities", "90").refused("each of sparsities must be")
