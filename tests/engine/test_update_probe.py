"""Strengths from the optimizer's updates: numbers worked by hand, and resumption."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from prunus import (
    CheckpointError,
    ConstantRelevance,
    GradualPruning,
    MagnitudeScore,
    OneShot,
    Pruner,
    RelevancePenalty,
    Schedule,
    UpdateStrength,
)

INPUT = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)


def layer(start: float = 10.0) -> nn.Linear:
    """Return a layer whose weights have the gradient :data:`INPUT` under the sum of its outputs."""
    made = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(made.weight, start)
    return made


def penalty(fraction: float = 0.5, every: int = 1) -> RelevancePenalty:
    return RelevancePenalty(UpdateStrength(fraction, every), ConstantRelevance(), power=1)


def step(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    model(INPUT).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_weights_shrink_by_a_fraction_of_the_mean_update_after_a_validation() -> None:
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, penalty(), Schedule())
    step(model, optimizer)
    assert model.weight.tolist() == [pytest.approx([9.9, 9.8, 9.7, 9.6])]
    pruner.step(1.0)
    step(model, optimizer)
    # The update is 0.1 · INPUT, on average 0.25, of which a half is subtracted on top.
    assert model.weight.tolist() == [pytest.approx([9.675, 9.475, 9.275, 9.075])]
    optimizer.param_groups[0]["lr"] = 0.01
    step(model, optimizer)
    assert model.weight.tolist() == [pytest.approx([9.6525, 9.4425, 9.2325, 9.0225])]


def test_the_penalty_acts_in_one_step_of_several_with_as_many_times_the_strength() -> None:
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, penalty(every=3), Schedule())
    step(model, optimizer)
    pruner.step(1.0)
    seen = []
    for _ in range(6):
        before = model.weight.detach().clone()
        step(model, optimizer)
        seen.append(float((before - 0.1 * INPUT - model.weight.detach()).mean()))
    assert sorted(seen) == pytest.approx([0.0] * 4 + [0.375] * 2)


def test_removed_weights_do_not_count_in_the_mean() -> None:
    model = layer()
    with torch.no_grad():
        model.weight[0, :2] = 0.001
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    schedule = OneShot(sparsity=0.5, at=1)
    pruner = Pruner(model, optimizer, penalty(), schedule, score=MagnitudeScore())
    for _ in range(21):  # steps 1 and 21 are measured
        step(model, optimizer)
    kept = pruner.masks["weight"]
    assert kept.tolist() == [[False, False, True, True]]
    pruner.step(1.0)
    probe = pruner._strengths.update_probe
    assert probe is not None
    # The removal read the sum 10 of the first update, of 4 weights, which counts half from then on.
    # With momentum 0.5 the later updates of the other two are twice their gradients.
    assert probe.rate(0) == pytest.approx((5 + 14) / 4, rel=1e-4)


def test_of_a_large_network_a_sample_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus._engine.update_probe._SAMPLE", 2)
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, penalty(), Schedule())
    step(model, optimizer)
    pruner.step(1.0)
    # The first and the third weight, whose gradients are 1 and 3.
    assert pruner._strengths.values() == {"weight": pytest.approx(0.5 * 0.1 * 2.0)}


def test_each_parameter_group_has_its_own_mean() -> None:
    model = nn.Sequential(layer(), nn.Linear(1, 1, bias=False, dtype=torch.float64))
    nn.init.ones_(model[1].weight)  # type: ignore[arg-type]
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    last = torch.optim.SGD(model[1].parameters(), lr=0.2)
    pruner = Pruner(model, [first, last], penalty(), Schedule())
    step(model, first, last)
    pruner.step(1.0)
    probe = pruner._strengths.update_probe
    assert probe is not None
    # The last weight has the first layer's output, 100, as its gradient.
    assert [probe.rate(0), probe.rate(1)] == [pytest.approx(2.5), pytest.approx(100.0)]
    values = pruner._strengths.values()
    assert values == {"0.weight": pytest.approx(0.125), "1.weight": pytest.approx(10.0)}


def test_a_step_that_a_scaler_skips_is_not_measured() -> None:
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, penalty(), Schedule())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for loss in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(loss * model(INPUT).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    pruner.step(1.0)
    assert pruner._strengths.values() == {"weight": pytest.approx(0.125)}


def test_the_updates_of_a_closure_count_from_the_weights_before_its_first_call() -> None:
    model = layer()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    pruner = Pruner(model, optimizer, penalty(), Schedule())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(INPUT).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    before = model.weight.detach().clone()
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    moved = float((model.weight.detach() - before).abs().mean())
    pruner.step(1.0)
    assert pruner._strengths.values() == {"weight": pytest.approx(0.5 * moved)}


def test_updates_that_are_not_finite_are_left_out() -> None:
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, penalty(), Schedule())
    for number in range(21):
        optimizer.zero_grad()
        model(INPUT if number else INPUT * torch.nan).sum().backward()
        optimizer.step()
        if number == 0:
            pruner.step(1.0)
            assert pruner._strengths.values() == {"weight": 0.0}
            with torch.no_grad():
                model.weight.fill_(10.0)
    pruner.step(1.0)
    assert pruner._strengths.values() == {"weight": pytest.approx(0.125)}


class Run:
    """A network in training, with two parameter groups and removals."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
        first, _, last = self.model
        groups: list[dict[str, Any]] = [
            {"params": first.parameters(), "lr": 1e-2},
            {"params": last.parameters()},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=3e-3)
        schedule = GradualPruning(sparsity=0.8, end=60, every=15)
        self.pruner = Pruner(self.model, self.optimizer, penalty(0.15, 5), schedule)
        self.inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))

    def train(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.optimizer.zero_grad()
            y = self.model(self.inputs * (1 + number % 7))
            (y - self.inputs[:, :3]).square().mean().backward()
            self.optimizer.step()
            if number % 25 == 24:
                self.pruner.step(float(number))


@pytest.mark.parametrize("at", [1, 20, 47, 70])
def test_a_resumed_run_equals_one_that_was_not_interrupted(at: int) -> None:
    whole, before, after = Run(), Run(), Run()
    whole.train(0, 90)
    before.train(0, at)
    after.model.load_state_dict(before.model.state_dict())
    after.optimizer.load_state_dict(copy.deepcopy(before.optimizer.state_dict()))
    after.pruner.load_state_dict(before.pruner.state_dict())
    after.train(at, 90)
    assert whole.pruner.state_dict()["strength"] == after.pruner.state_dict()["strength"]
    for one, other in zip(whole.model.parameters(), after.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(rate > 0 for rate in whole.pruner.state_dict()["strength"]["updates"]["rates"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rates", [-1.0], "rates must be at least 0, but is -1"),
        ("moved", 3, "moved must be a list of numbers, but is 3"),
        ("update_steps", [], r"update_steps must be a list of 1 numbers, but is \[\]"),
    ],
)
def test_a_state_with_wrong_updates_is_rejected(key: str, value: Any, message: str) -> None:
    run = Run()
    state = run.pruner.state_dict()
    state["strength"]["updates"][key] = value
    with pytest.raises(CheckpointError, match=message):
        run.pruner.load_state_dict(state)
