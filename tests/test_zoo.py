"""The zoo of architectures: a small part of the benchmark, and that it detects differences."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from benchmarks.measuring import RESULTS
from benchmarks.robustness.zoo.architecture import Architecture
from benchmarks.robustness.zoo.functions import FUNCTIONS, run
from benchmarks.robustness.zoo.registry import ARCHITECTURES

WITHOUT_ONNX = [name for name in FUNCTIONS if name != "ONNX"]

RUN = {
    "transformers: BERT": FUNCTIONS,
    "transformers: Llama": WITHOUT_ONNX,
    "transformers: Mixtral": WITHOUT_ONNX,
    "transformers: ResNet": WITHOUT_ONNX,
    "transformers: ViT": WITHOUT_ONNX,
}
"""Architectures of several types and the functions to apply: ONNX takes the most time."""


def recorded() -> dict[str, Any]:
    rows = json.loads((RESULTS / "zoo.json").read_text())["architectures"]
    return {f"{row['library']}: {row['name']}": row["outcomes"] for row in rows}


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize(("name", "functions"), RUN.items(), ids=RUN)
def test_every_function_returns_an_equal_model(name: str, functions: list[str]) -> None:
    outcomes = run(ARCHITECTURES[name], functions)
    assert {key: each.reason for key, each in outcomes.items() if each.status != "equal"} == {}
    assert {recorded()[name][key]["status"] for key in outcomes} == {"equal"}


def test_recorded_outcomes_are_those_of_registered_architectures() -> None:
    assert recorded().keys() <= ARCHITECTURES.keys()
    for name, outcomes in recorded().items():
        assert list(outcomes) == [key for key in FUNCTIONS if key in outcomes], name
        for outcome in outcomes.values():
            assert outcome["status"] == "equal" or (
                outcome["status"] == "refused" and outcome["reason"]
            ), name


class Perceptron(Architecture):
    """An architecture that needs no library."""

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return Named().eval()

    def draw_inputs(self, seed: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))}


class Named(nn.Module):
    def __init__(self, unused: nn.Module | None = None) -> None:
        super().__init__()
        self.unused = unused
        self.layers = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


PERCEPTRON = Perceptron("perceptron", "convolutional", "timm", "", {})


class WithUnusedLayers(Perceptron):
    """An architecture with a frozen layer and one without gradient."""

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        frozen = nn.Linear(2, 2).requires_grad_(False)
        return Named(nn.Sequential(nn.Linear(3, 2), frozen)).eval()


def test_what_an_error_names_is_left_out_and_the_rest_is_tried() -> None:
    names = ["select", "train and remove", "sparse file"]
    outcomes = run(WithUnusedLayers("unused", "convolutional", "timm", "", {}), names)
    assert list(outcomes) == names
    assert {each.status for each in outcomes.values()} == {"equal"}
    fixes = ["with 2 tensors in exclude=", "with 4 tensors in exclude=", ""]
    assert [each.fix for each in outcomes.values()] == fixes
    assert "unused.1.weight is frozen" in outcomes["select"].reason
    assert "unused.0.weight had none" in outcomes["train and remove"].reason


def test_differences_and_foreign_errors_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["train and remove", "sparse file", "compact"]
    assert {each.status for each in run(PERCEPTRON, names).values()} == {"equal"}
    compact, load_sparse = prunus.compact, prunus.load_sparse

    def differing(*args: Any, **kwargs: Any) -> Any:
        small, report = compact(*args, **kwargs)
        next(small.parameters()).data.mul_(1.001)
        return small, report

    def incomplete(path: Any, model: nn.Module) -> None:
        load_sparse(path, model)
        next(model.parameters()).data.view(-1)[0] += 1

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(prunus, "compact", differing)
    monkeypatch.setattr(prunus, "load_sparse", incomplete)
    outcomes = run(PERCEPTRON, names)
    assert [each.status for each in outcomes.values()] == ["equal", "wrong", "wrong"]
    assert "0.weight" in outcomes["sparse file"].reason
    assert "an output differs by" in outcomes["compact"].reason
    monkeypatch.setattr(prunus, "compact", failing)
    outcomes = run(PERCEPTRON, names)
    assert outcomes["compact"].reason == "RuntimeError: shapes differ"
    assert outcomes["compact"].status == "wrong"
