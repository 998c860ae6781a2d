"""Strengths: values computed by hand, and what is accepted as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from prunus import (
    AutomaticStrength,
    ConstantStrength,
    GradualPruning,
    IterativePruning,
    LearningRateStrength,
    LinearDecayStrength,
    OneShot,
    Pruner,
    PrunusError,
    RelevancePenalty,
    Schedule,
    Strength,
    StrengthStep,
    UpdateStrength,
)
from prunus.penalties.strengths import as_strength


@pytest.mark.parametrize(
    ("strength", "lr", "steps", "value"),
    [
        (ConstantStrength(0.25), 0.5, 3, 0.25),
        (LearningRateStrength(0.25), 0.5, 3, 0.125),
        (LinearDecayStrength(8.0, steps=4), 0.5, 0, 8.0),
        (LinearDecayStrength(8.0, steps=4), 0.5, 1, 6.0),
        (LinearDecayStrength(8.0, steps=4), 0.5, 3, 2.0),
        (LinearDecayStrength(8.0, steps=4), 0.5, 4, 0.0),
        (LinearDecayStrength(8.0, steps=4), 0.5, 5, 0.0),
        (LinearDecayStrength(8.0, steps=1), 0.5, 0, 8.0),
    ],
)
def test_strengths_have_the_values_computed_by_hand(
    strength: Strength, lr: float, steps: int, value: float
) -> None:
    step = StrengthStep(lr=lr, peak_lr=1.0, steps_since_pruning=steps)
    assert strength.value(step) == value


@pytest.mark.parametrize(
    ("step", "value"),
    [
        # (1 − 2γ)^n = 1/2, so γ = (1 − 2^(−1/n)) / 2.
        (StrengthStep(lr=0.1, peak_lr=0.1, interval=1), 0.25),
        (StrengthStep(lr=0.1, peak_lr=0.1, interval=2), (1 - math.sqrt(0.5)) / 2),
        (StrengthStep(lr=0.1, peak_lr=0.4, interval=1), 0.25 / 4),
        (StrengthStep(lr=0.0, peak_lr=0.4, interval=1), 0.0),
        (StrengthStep(lr=0.0, peak_lr=0.0, interval=1), 0.0),
        (StrengthStep(lr=0.1, peak_lr=0.1, interval=None), 0.0),
        # 1 − 2^(−ε) is ε · ln 2 for small ε.
        (StrengthStep(lr=0.1, peak_lr=0.1, interval=10**12), math.log(2) / 2e12),
    ],
)
def test_automatic_strength_halves_within_the_interval(step: StrengthStep, value: float) -> None:
    assert AutomaticStrength(every=1).value(step) == pytest.approx(value, rel=1e-12)


def test_automatic_strength_leaves_the_fraction_that_was_passed() -> None:
    step = StrengthStep(lr=1.0, peak_lr=1.0, interval=7)
    assert (1 - 2 * AutomaticStrength(0.2, every=1).value(step)) ** 7 == pytest.approx(
        0.2, rel=1e-12
    )
    assert AutomaticStrength(1.0).value(step) == 0


def untouched_weights(
    schedule: Schedule, lrs: Sequence[float], validate: int, every: int = 1
) -> list[float]:
    """Train a layer on zeros, so that no weight matters; return a weight after each step."""
    layer = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters())
    penalty = RelevancePenalty(AutomaticStrength(every=every))
    pruner = Pruner(layer, optimizer, penalty, schedule, mode="min", floor=-1.0)
    weights = []
    for number, lr in enumerate(lrs, 1):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        layer(torch.zeros(1, 2, dtype=torch.float64)).sum().backward()
        optimizer.step()
        weights.append(float(layer.weight.detach()[0, 0]))
        if number % validate == 0:
            pruner.step(1.0)  # below the floor, so that nothing is removed
    return weights


def test_an_irrelevant_weight_halves_between_two_validations() -> None:
    weights = untouched_weights(IterativePruning(), [0.1] * 12, validate=4)
    expected = [1.0] * 4 + [0.5 ** (n / 4) for n in range(1, 9)]
    assert weights == pytest.approx(expected, rel=1e-12)


def test_automatic_strength_acts_in_one_step_of_several() -> None:
    weights = untouched_weights(IterativePruning(), [0.1] * 18, validate=6, every=3)
    # In two steps of an interval of 6, which differ from those of the interval before.
    half = 0.5**0.5
    factors = [1.0] * 6 + [1.0, 1.0, half] * 2 + [1.0, half, 1.0] * 2
    assert weights == pytest.approx(np.cumprod(factors), rel=1e-12)


def test_automatic_strength_acts_in_every_step_of_a_shorter_interval() -> None:
    weights = untouched_weights(IterativePruning(), [0.1] * 6, validate=2, every=5)
    assert weights == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.25, 0.25], rel=1e-12)


def test_automatic_strength_ends_with_the_schedule() -> None:
    layer = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    schedule = GradualPruning(sparsity=0.5, end=8, every=8)
    pruner = Pruner(layer, optimizer, RelevancePenalty(AutomaticStrength(every=1)), schedule)
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        layer(torch.zeros(1, 4, dtype=torch.float64)).sum().backward()
        optimizer.step()
        seen.append(float(layer.weight.detach()[0, 3]))
    assert pruner.done
    # The interval is a quarter of the 8 steps.
    assert seen == pytest.approx([0.5 ** (min(n, 8) / 2) for n in range(1, 13)], rel=1e-12)


def test_an_irrelevant_weight_shrinks_with_the_learning_rate_of_its_peak() -> None:
    weights = untouched_weights(IterativePruning(), [0.2, 0.2, 0.1, 0.4], validate=1)
    # Validations after each step, so that a weight halves in one step at the peak rate so far.
    assert weights == pytest.approx([1.0, 0.5, 0.5 * 0.75, 0.5 * 0.75 * 0.5], rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        (GradualPruning(sparsity=0.5, begin=40, end=80, every=1000), 10),
        (GradualPruning(sparsity=0.5, epochs=10, steps_per_epoch=7), 7),
        (
            GradualPruning(sparsity=0.5, total_steps=16, every=1000),
            2,
        ),
        (OneShot(sparsity=0.5, at=24), 6),
        (OneShot(sparsity=0.5, at=1), 1),
        (OneShot(sparsity=0.5), None),
        (IterativePruning(), None),
    ],
)
def test_a_schedule_by_steps_gives_the_interval_until_a_validation(
    schedule: Schedule, interval: int | None
) -> None:
    assert schedule.interval == interval


def test_gradual_pruning_halves_irrelevant_weights_without_a_validation() -> None:
    schedule = GradualPruning(sparsity=0.5, begin=72, end=80, every=1000)
    weights = untouched_weights(schedule, [0.1] * 6, validate=4)  # and after it in four steps
    expected = [0.5 ** (n / 2) for n in range(1, 5)] + [0.25 * 0.5 ** (n / 4) for n in (1, 2)]
    assert weights == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"apply": "gradient"}, 'with apply="gradient" and power=2: AutomaticStrength'),
        ({"apply": "loss"}, 'with apply="loss" and power=2: AutomaticStrength'),
        ({"power": 1}, 'with apply="decoupled" and power=1: AutomaticStrength.*and UpdateStrength'),
        (
            {"strength": UpdateStrength()},
            'with apply="decoupled" and power=2: UpdateStrength.* power=1 only, and AutomaticStr',
        ),
        (
            {"strength": UpdateStrength(), "power": 1, "apply": "gradient"},
            'with apply="gradient" and power=1: UpdateStrength',
        ),
    ],
)
def test_a_strength_that_cannot_be_found_must_be_passed(
    arguments: dict[str, Any], message: str
) -> None:
    message = f"^strength must be a number or another Strength {message}"
    with pytest.raises(PrunusError, match=message):
        RelevancePenalty(**arguments)


@pytest.mark.parametrize("number", [0, 3, 0.5, np.float32(0.5), np.int64(3)])
def test_a_number_is_a_constant_strength(number: Any) -> None:
    strength = as_strength(number)
    assert strength == ConstantStrength(float(number))
    assert type(strength.value(StrengthStep(lr=1.0, peak_lr=1.0))) in (int, float)


def test_a_strength_is_returned_as_it_is() -> None:
    strength = LearningRateStrength(0.0)
    assert as_strength(strength) is strength


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutomaticStrength(every=0), "every must be at least 1, but is 0"),
        (lambda: AutomaticStrength(0.0), "remaining must be above 0 and at most 1, but is 0.0"),
        (lambda: AutomaticStrength(1.1), "remaining must be above 0 and at most 1, but is 1.1"),
        (lambda: UpdateStrength(-0.1), "fraction must be from 0 to 1, but is -0.1"),
        (lambda: UpdateStrength(every=0), "every must be at least 1, but is 0"),
        (lambda: ConstantStrength(-0.1), "gamma must be at least 0, but is -0.1"),
        (lambda: ConstantStrength(math.nan), "gamma must be a finite number"),
        (lambda: LearningRateStrength(-1), "ratio must be at least 0, but is -1"),
        (lambda: LinearDecayStrength(-1, 2), "^initial must be at least 0, but is -1$"),
        (lambda: LinearDecayStrength(1, 0), "^steps must be at least 1, but is 0$"),
        (
            lambda: LinearDecayStrength(1, 1.5),  # type: ignore[arg-type]
            "^steps must be a whole number of at least 1, but is 1.5$",
        ),
        (
            lambda: LinearDecayStrength(-1, 0),
            "^initial must be at least 0, but is -1; steps must be at least 1, but is 0$",
        ),
        (lambda: as_strength(-0.5), "^strength must be at least 0, but is -0.5"),
        (lambda: as_strength(np.float32(-0.5)), r"^strength must be at least 0, .*\(-0.5\)"),  # type: ignore[arg-type]
        (lambda: as_strength("1"), "strength must be a number or a Strength"),  # type: ignore[arg-type]
    ],
)
def test_invalid_strengths_are_rejected(make: Any, message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        make()
