"""Checkpoints of torch.distributed.checkpoint, loaded by another number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from benchmarks.processes import run_in_processes
from distributed.test_sharded import (
    fsdp,
    one_process,
    take_steps,
    tensor_parallel,
    transformer,
    whole,
)
from prunus import (
    AutomaticStrength,
    CheckpointError,
    ExponentialRelevance,
    GradualPruning,
    Pruner,
    RelevancePenalty,
    SensitivityScore,
    UpdateStrength,
    select,
)

pytestmark = pytest.mark.distributed

LAYOUTS = {"fsdp": fsdp, "tensor_parallel": tensor_parallel, "one_process": one_process}


RELATIVE = ExponentialRelevance(0.2, relative=True)
PENALTIES = {
    "automatic": RelevancePenalty(AutomaticStrength(every=2), RELATIVE, smoothing=0.9),
    "updates": RelevancePenalty(UpdateStrength(every=2), RELATIVE, power=1, smoothing=0.9),
}


class Run:
    """A model in training whose optimizer and pruner use every part of their state."""

    def __init__(self, layout: str, penalty: str = "automatic") -> None:
        model = transformer().to(torch.float64)
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.model: nn.Module = LAYOUTS[layout](model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=0.1)
        self.pruner = Pruner(
            self.model,
            self.optimizer,
            PENALTIES[penalty],
            GradualPruning(sparsity=0.9, end=8, every=2),
            score=SensitivityScore(),
            selection=select(self.model, biases=True),
            max_grad_norm=1.0,
            floor=0.5,
        )

    def steps(self, *numbers: int) -> None:
        for number in numbers:
            shapes, double = self.shapes, torch.float64
            take_steps(self.model, self.optimizer, shapes, number, dtype=double)
            if number in (3, 7):
                self.pruner.step(0.6 + number / 100)

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "pruner": self.pruner.state_dict()}

    def save(self, folder: str) -> None:
        save(self.state(), checkpoint_id=folder)

    def load(self, folder: str) -> None:
        # complete=True is the default if the model is sharded.
        state = {**self.state(), "pruner": self.pruner.state_dict(complete=True)}
        load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.pruner.load_state_dict(state["pruner"])

    def outcome(self) -> dict[str, Any]:
        now = {name: whole(p) for name, p in self.model.named_parameters()}
        kept, sparsity = self.pruner.masks.kept, self.pruner.sparsity
        self.pruner.finish()  # the state of step 7
        best = {name: whole(p) for name, p in self.model.named_parameters()}
        return {"now": now, "best": best, "kept": kept, "sparsity": sparsity}


def uninterrupted(layout: str, penalty: str = "automatic") -> dict[str, Any]:
    run = Run(layout, penalty)
    run.steps(*range(12))
    return run.outcome()


def saved(layout: str, folder: str, penalty: str = "automatic") -> None:
    run = Run(layout, penalty)
    run.steps(*range(5))
    run.save(folder)


def resumed(layout: str, folder: str, penalty: str = "automatic") -> dict[str, Any]:
    run = Run(layout, penalty)
    run.load(folder)
    run.steps(*range(5, 12))
    return run.outcome()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    run_in_processes(4, saved, "fsdp", str(folder))
    return folder


def resumed_from_whole(state: dict[str, Any]) -> dict[str, Any]:
    """Load the state of a single process into the pruner of a sharded model."""
    run = Run("fsdp")
    run.steps(*range(5))  # which the model and the optimizer need
    run.pruner.load_state_dict(state)
    run.steps(*range(5, 12))
    return run.outcome()


def test_the_state_of_one_process_loads_into_a_sharded_pruner() -> None:
    run = Run("one_process")
    run.steps(*range(5))
    expected = uninterrupted("one_process")
    for outcome in run_in_processes(2, resumed_from_whole, run.pruner.state_dict()):
        assert outcome["kept"] == expected["kept"]
        for state in ("now", "best"):
            for name, value in expected[state].items():
                torch.testing.assert_close(outcome[state][name], value, rtol=1e-9, atol=1e-12)


def test_a_checkpoint_read_into_an_incomplete_state_is_rejected(checkpoint: Path) -> None:
    run = Run("one_process")
    state = run.pruner.state_dict()
    with pytest.warns(UserWarning, match="single process"):
        load({"pruner": state}, checkpoint_id=str(checkpoint), no_dist=True)
    assert state["best"]["kept"] is not None
    with pytest.raises(CheckpointError, match=r"pruner\.state_dict\(complete=True\)"):
        run.pruner.load_state_dict(state)


@pytest.mark.parametrize(
    ("layout", "count"), [("fsdp", 2), ("tensor_parallel", 2), ("fsdp", 1), ("one_process", 1)]
)
def test_a_run_of_four_processes_resumes_in_fewer_processes(
    checkpoint: Path, layout: str, count: int
) -> None:
    expected = uninterrupted("one_process")
    for outcome in run_in_processes(count, resumed, layout, str(checkpoint)):
        check_equal(outcome, expected)


def test_the_mean_update_of_two_processes_resumes_in_one(tmp_path: Path) -> None:
    run_in_processes(2, saved, "fsdp", str(tmp_path), "updates")
    expected = uninterrupted("one_process", "updates")
    (outcome,) = run_in_processes(1, resumed, "one_process", str(tmp_path), "updates")
    check_equal(outcome, expected)


def check_equal(outcome: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that two runs ended in the same states, up to the order of sums."""
    assert outcome["kept"] == expected["kept"]
    assert outcome["sparsity"] == expected["sparsity"]
    for state in ("now", "best"):
        for name, value in expected[state].items():
            actual = outcome[state][name]
            assert torch.equal(actual == 0, value == 0), f"{state} {name}"
            torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-12)
