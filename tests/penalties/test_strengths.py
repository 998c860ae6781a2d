"""Strengths: values computed by hand, and what is accepted as one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prunus import (
    ConstantStrength,
    LearningRateStrength,
    LinearDecayStrength,
    PrunusError,
    Strength,
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
    assert strength.value(lr=lr, steps_since_pruning=steps) == value


@pytest.mark.parametrize("number", [0, 3, 0.5, np.float32(0.5), np.int64(3)])
def test_a_number_is_a_constant_strength(number: Any) -> None:
    strength = as_strength(number)
    assert strength == ConstantStrength(float(number))
    assert type(strength.value(lr=1.0, steps_since_pruning=0)) in (int, float)


def test_a_strength_is_returned_as_it_is() -> None:
    strength = LearningRateStrength(0.0)
    assert as_strength(strength) is strength


@pytest.mark.parametrize(
    ("make", "message"),
    [
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
