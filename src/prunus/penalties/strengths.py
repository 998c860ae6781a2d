"""Strengths: the factor γ of the penalty, and how it moves during training."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Protocol

from prunus._utils.checks import method_problem, number_problem, raise_problems

__all__ = [
    "ConstantStrength",
    "LearningRateStrength",
    "LinearDecayStrength",
    "Strength",
    "as_strength",
]


class Strength(Protocol):
    """Anything that says how strong the penalty is at a step."""

    def value(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return γ for this step.

        Args:
            lr: The learning rate of the parameter group that holds the tensor.
            steps_since_pruning: Steps since weights were last removed, or since the start.
        """
        ...


@dataclass(frozen=True)
class ConstantStrength:
    """The same γ at every step; what a plain number means.

    Args:
        gamma: γ.

    Raises:
        PrunusError: ``gamma`` is negative, NaN or infinite.

    Example:
        >>> ConstantStrength(1e-5).value(lr=0.1, steps_since_pruning=7)
        1e-05
    """

    gamma: float

    def __post_init__(self) -> None:
        raise_problems(number_problem("a strength", self.gamma, least=0))

    def value(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the constant."""
        return self.gamma


@dataclass(frozen=True)
class LearningRateStrength:
    """γ = ratio · learning rate, so that a schedule of the learning rate moves both together.

    With the decoupled way and a constant coefficient this is AdamW's weight decay of ``2 · ratio``,
    taken after the step.

    Args:
        ratio: γ / learning rate. The learning rate is that of the tensor's parameter group.

    Raises:
        PrunusError: ``ratio`` is negative, NaN or infinite.

    Example:
        >>> LearningRateStrength(0.5).value(lr=0.1, steps_since_pruning=0)
        0.05
    """

    ratio: float

    def __post_init__(self) -> None:
        raise_problems(number_problem("a strength", self.ratio, least=0))

    def value(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the ratio times the learning rate."""
        return self.ratio * lr


@dataclass(frozen=True)
class LinearDecayStrength:
    """γ falls linearly from ``initial`` to 0 over ``steps`` and starts again at each pruning.

    This is what the authors do over the steps of one epoch.

    Args:
        initial: γ at the start and right after each pruning.
        steps: Optimizer steps until γ is 0.

    Raises:
        PrunusError: ``initial`` is negative, NaN or infinite, or ``steps`` is below 1.

    Example:
        >>> strength = LinearDecayStrength(1.0, steps=4)
        >>> [strength.value(lr=0.1, steps_since_pruning=n) for n in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """

    initial: float
    steps: int

    def __post_init__(self) -> None:
        raise_problems(
            number_problem("a strength", self.initial, least=0),
            number_problem("steps", self.steps, whole=True, least=1),
        )

    def value(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the point on the line, 0 once its end is reached."""
        return self.initial * max(0.0, 1.0 - steps_since_pruning / self.steps)


def as_strength(strength: float | Strength) -> Strength:
    """Wrap a plain number.

    Raises:
        PrunusError: The number is negative, NaN or infinite, or it is neither a number nor a
        strength.
    """
    if isinstance(strength, int | float):
        return ConstantStrength(strength)
    if isinstance(strength, Real):  # a number of numpy's, say
        return ConstantStrength(float(strength))
    raise_problems(method_problem("strength", strength, ["value"], "a number or a Strength"))
    return strength
