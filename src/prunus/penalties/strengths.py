"""Strengths: the factor γ of the penalty, and how it changes during training."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Protocol

from prunus._utils.checks import method_problem, number_problem, raise_problems
from prunus._utils.fields import number, validate

__all__ = [
    "ConstantStrength",
    "LearningRateStrength",
    "LinearDecayStrength",
    "Strength",
    "as_strength",
    "strength_problem",
]


class Strength(Protocol):
    """Anything that returns the strength of the penalty at a step."""

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
        ArgumentError: ``gamma`` is negative, NaN or infinite.

    Example:
        >>> ConstantStrength(1e-5).value(lr=0.1, steps_since_pruning=7)
        1e-05
    """

    gamma: float = number(least=0)

    def __post_init__(self) -> None:
        validate(self)

    def value(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the constant."""
        return self.gamma


@dataclass(frozen=True)
class LearningRateStrength:
    """γ = ratio · learning rate, so that a schedule of the learning rate moves both together.

    With ``apply="decoupled"`` and a constant coefficient this is AdamW's weight decay of
    ``2 · ratio``, applied after the step.

    Args:
        ratio: γ / learning rate. The learning rate is that of the tensor's parameter group.

    Raises:
        ArgumentError: ``ratio`` is negative, NaN or infinite.

    Example:
        >>> LearningRateStrength(0.5).value(lr=0.1, steps_since_pruning=0)
        0.05
    """

    ratio: float = number(least=0)

    def __post_init__(self) -> None:
        validate(self)

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
        ArgumentError: ``initial`` is negative, NaN or infinite, or ``steps`` is below 1.

    Example:
        >>> strength = LinearDecayStrength(1.0, steps=4)
        >>> [strength.value(lr=0.1, steps_since_pruning=n) for n in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """

    initial: float = number(least=0)
    steps: int = number(whole=True, least=1)

    def __post_init__(self) -> None:
        validate(self)

    def value(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the value of the line at this step; 0 past its end."""
        return self.initial * max(0.0, 1.0 - steps_since_pruning / self.steps)


def strength_problem(name: str, strength: object) -> str | None:
    """Return what is wrong with a strength: a number of at least 0, or a :class:`Strength`.

    Example:
        >>> strength_problem("strength", -1)
        'strength must be at least 0, but is -1'
    """
    if isinstance(strength, Real):
        return number_problem(name, strength, least=0)
    return method_problem(name, strength, ["value"], "a number or a Strength")


def as_strength(strength: float | Strength) -> Strength:
    """Return a strength: as it is, or the constant one of a plain number.

    Raises:
        ArgumentError: It is a number that is negative, NaN or infinite.
        ArgumentTypeError: It is neither a number nor a strength.
    """
    raise_problems(strength_problem("strength", strength))
    if isinstance(strength, int | float):
        return ConstantStrength(strength)
    if isinstance(strength, Real):  # such as a number of numpy's
        return ConstantStrength(float(strength))
    return strength
