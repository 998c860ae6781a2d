"""Strengths: the factor γ of the penalty, and how it moves during training."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Protocol

from prunus.arguments import refuse, wrong_methods, wrong_number

__all__ = ["ConstantStrength", "FollowLearningRate", "LinearDecay", "Strength", "as_strength"]


class Strength(Protocol):
    """Anything that says how strong the penalty is at a step."""

    def at(self, *, lr: float, steps_since_pruning: int) -> float:
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
        value: γ.

    Raises:
        UserError: ``value`` is negative, NaN or infinite.

    Example:
        >>> ConstantStrength(1e-5).at(lr=0.1, steps_since_pruning=7)
        1e-05
    """

    value: float

    def __post_init__(self) -> None:
        refuse(wrong_number("a strength", self.value, least=0))

    def at(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the constant."""
        return self.value


@dataclass(frozen=True)
class FollowLearningRate:
    """γ = value · learning rate, so that a schedule of the learning rate moves both together.

    With the decoupled way and a constant coefficient this is AdamW's weight decay of ``2 · value``,
    taken after the step.

    Args:
        value: γ / learning rate. The learning rate is that of the tensor's parameter group.

    Raises:
        UserError: ``value`` is negative, NaN or infinite.

    Example:
        >>> FollowLearningRate(0.5).at(lr=0.1, steps_since_pruning=0)
        0.05
    """

    value: float

    def __post_init__(self) -> None:
        refuse(wrong_number("a strength", self.value, least=0))

    def at(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the value times the learning rate."""
        return self.value * lr


@dataclass(frozen=True)
class LinearDecay:
    """γ falls linearly from ``value`` to 0 over ``steps`` and starts again at each pruning.

    This is what the authors do over the steps of one epoch.

    Args:
        value: γ at the start and right after each pruning.
        steps: Optimizer steps until γ is 0.

    Raises:
        UserError: ``value`` is negative, NaN or infinite, or ``steps`` is below 1.

    Example:
        >>> strength = LinearDecay(1.0, steps=4)
        >>> [strength.at(lr=0.1, steps_since_pruning=n) for n in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """

    value: float
    steps: int

    def __post_init__(self) -> None:
        refuse(
            wrong_number("a strength", self.value, least=0),
            wrong_number("steps", self.steps, whole=True, least=1),
        )

    def at(self, *, lr: float, steps_since_pruning: int) -> float:
        """Return the value on the line, 0 once its end is reached."""
        return self.value * max(0.0, 1.0 - steps_since_pruning / self.steps)


def as_strength(strength: float | Strength) -> Strength:
    """Wrap a plain number.

    Raises:
        UserError: The number is negative, NaN or infinite, or it is neither a number nor a
        strength.
    """
    if isinstance(strength, int | float):
        return ConstantStrength(strength)
    if isinstance(strength, Real):  # a number of numpy's, say
        return ConstantStrength(float(strength))
    refuse(wrong_methods("strength", strength, ["at"], "a number or a Strength"))
    return strength
