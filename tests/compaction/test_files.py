"""Tests of files of compact models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from helpers.sparse_models import zero
from prunus import PrunusError, compaction
from prunus.errors import ArgumentError

from .round_trips import compact_and_reload, compact_with_report


def test_loading_into_another_model_is_rejected(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    path = tmp_path / "model.safetensors"
    small, report = compact_with_report(model, torch.ones(2, 4))
    compaction.save_compact(small, report, path, metadata={"recipe": "mine"})
    with prunus.SparseFile(path) as file:
        assert file.metadata()["recipe"] == "mine"
    for other, message in {
        nn.Sequential(nn.Linear(4, 6), nn.ReLU()): "does not fit Sequential, which must be built",
        nn.Sequential(
            nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(6, 2)
        ): "0 has no integer attribute out_features",
        nn.Linear(4, 6): "does not fit Linear",
    }.items():
        with pytest.raises(ArgumentError, match=message):
            compaction.load_compact(path, other)
    with pytest.raises(PrunusError, match=r"rounded: load first and convert the model then$"):
        compaction.load_compact(path, copy.deepcopy(model).bfloat16())
    prunus.save_sparse(model, path)
    with pytest.raises(ArgumentError, match=r"is not the file of a compact model: .*load_sparse"):
        compaction.load_compact(path, model)
    with pytest.raises(PrunusError, match="there is no file"):
        compaction.load_compact(tmp_path / "no", model)


UNCHANGED: dict[str, Any] = {
    "replaced_types": {}, "changed_attributes": {}, "new_biases": [], "original_shapes": {}
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        7,
        {},
        {"replaced_types": {"0": "Sequential"}},
        {"changed_attributes": {"0": {"in_features": -1}}},
        {"changed_attributes": {"0": {"in_features": "3"}}},
        {"changed_attributes": {"0": 3}},
        {"new_biases": [3]},
        {"new_biases": None},
        {"replaced_types": [1]},
        {"original_shapes": {"0.weight": 3}},
        {"original_shapes": None},
    ],
)
def test_invalid_metadata_is_rejected(changes: Any, tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6))
    if changes:
        changes = UNCHANGED | changes if isinstance(changes, dict) else changes
    prunus.save_sparse(model, tmp_path / "a", metadata={"compact": changes})
    with pytest.raises(prunus.SparseFileError, match="do not describe a compact model. Restore"):
        compaction.load_compact(tmp_path / "a", model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replaced_types": {"1": "SelectingLinear"}}, "1 is a ReLU, not a Linear"),
        ({"replaced_types": {"7": "SelectingLinear"}}, "no attribute"),
        ({"replaced_types": {"0": "SelectingLinear"}}, "selected"),  # the file lacks it
        ({"changed_attributes": {"0": {"forward": 3}}}, "0 has no integer attribute forward"),
        ({"changed_attributes": {"0": {"inner_dim": 3}}}, "0 has no integer attribute inner_dim"),
        ({"new_biases": ["7"]}, "no attribute"),
        ({"new_biases": ["0"]}, "0 is not a layer that was built with bias=False"),
        ({"new_biases": ["1"]}, "1 is not a layer that was built with bias=False"),
    ],
)
def test_metadata_may_change_only_what_compaction_changes(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    prunus.save_sparse(model, tmp_path / "a", metadata={"compact": UNCHANGED | changes})
    with pytest.raises(PrunusError, match=message):
        compaction.load_compact(tmp_path / "a", model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    "selected",
    [torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([[0, 1]])],
)  # fmt: skip
def test_selected_features_out_of_range_are_rejected(
    selected: torch.Tensor, tmp_path: Path
) -> None:
    state = {"0.weight": torch.ones(6, 2), "0.bias": torch.ones(6), "0.selected": selected}
    changes = UNCHANGED | {
        "replaced_types": {"0": "SelectingLinear"},
        "original_shapes": {"0.weight": [6, 4]},
    }
    prunus.save_sparse(state, tmp_path / "a", metadata={"compact": changes})
    model: Any = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(PrunusError, match=r"0\.selected must hold 2 indices of 4 input features"):
        compaction.load_compact(tmp_path / "a", model)
    state["0.selected"] = torch.tensor([1, 3])
    prunus.save_sparse(state, tmp_path / "a", metadata={"compact": changes})
    wrapped: Any = torch.compile(model, backend="eager")
    loaded = compaction.load_compact(tmp_path / "a", wrapped)
    # Weights and biases are ones: 1 + 2 of the features selected, and the bias.
    assert loaded(torch.tensor([[5.0, 1.0, 7.0, 2.0]])).tolist() == [[1 + 2 + 1] * 6]


@pytest.mark.slow
def test_attributes_changed_by_a_call_are_not_recorded_as_sizes() -> None:
    class Counting(nn.Sequential):
        calls = 0
        longest = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls, self.longest = self.calls + 1, len(x)
            output: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return output

    model: Any = Counting(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, slice(0, 2))
    compact_and_reload(model, torch.ones(2, 4))
    _small, report = compact_with_report(model, torch.ones(2, 4))
    assert not {"calls", "longest"} & report.changed_attributes.get("", {}).keys()


@pytest.mark.slow
def test_smaller_non_persistent_buffer_is_rejected_by_name(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("scale", torch.ones(6), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(torch.relu(self.one(x)) * self.scale)  # type: ignore[no-any-return]

    model: Any = Scaled()
    zero(model.one.weight, slice(0, 2))
    zero(model.one.bias, slice(0, 2))
    small, report = compact_with_report(model, torch.ones(2, 4))
    assert "scale" in [tensor.name for tensor in report.resized]
    with pytest.raises(PrunusError, match="tensors that became smaller: scale. .*persistent=True"):
        compaction.save_compact(small, report, tmp_path / "a")
