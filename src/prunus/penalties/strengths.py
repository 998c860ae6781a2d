"""Strengths: the factor γ of the penalty, and how it changes during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

from prunus._utils.checks import method_problem, number_problem, raise_problems
from prunus._utils.fields import number, validate

__all__ = [
    "AutomaticStrength",
    "ConstantStrength",
    "LearningRateStrength",
    "LinearDecayStrength",
    "Strength",
    "StrengthStep",
    "UpdateStrength",
    "as_strength",
    "strength_problem",
]


@dataclass(frozen=True, kw_only=True)
class StrengthStep:
    """What a strength may depend on at a step.

    Attributes:
        lr: The learning rate of the parameter group that holds the tensor.
        peak_lr: The largest learning rate that this group has had so far.
        number: A count of steps, for strengths that act in some of them only.
        steps_since_pruning: Steps since weights were last removed, or since the start.
        interval: Steps between the last two validations, or what the schedule expects of them. None
            as long as that is not known.
        done: Whether no more weights will be removed.
        mean_update: Mean |Δw| of the group's kept weights by the optimizer's update, at this
            learning rate, as measured in earlier steps. None as long as that is not known, and for
            strengths that do not ask for it (:class:`UpdateStrength`).

    Example:
        >>> step = StrengthStep(lr=0.05, peak_lr=0.1, interval=500)
        >>> LearningRateStrength(0.5).value(step)
        0.025
    """

    lr: float
    peak_lr: float
    number: int = 0
    steps_since_pruning: int = 0
    interval: int | None = None
    done: bool = False
    mean_update: float | None = None


class Strength(Protocol):
    """Anything that returns the strength of the penalty at a step."""

    def value(self, step: StrengthStep) -> float:
        """Return γ for this step."""
        ...


@dataclass(frozen=True)
class AutomaticStrength:
    """γ by which an irrelevant weight shrinks to a fraction from one validation to the next.

    The penalty acts in one step of k only, where the decoupled penalty multiplies a weight that the
    loss does not depend on by 1 − 2γ. With n steps from one validation to the next, after which
    weights may be removed,

        (1 − 2γ)^(n / k) = remaining,

    on average over the intervals. That γ is multiplied by the learning rate divided by its peak so
    far. It is 0 once the schedule is done, because nothing is removed any more. Weights with
    smaller irrelevance coefficients shrink less. A weight that few batches use, such as one of the
    embedding of a rare token, is irrelevant in most steps: where these matter, pass ``smoothing=``
    to the penalty.

    n is the number of steps between the last two calls of ``pruner.step``, or before the first one.
    Until then γ is 0, except with a schedule that removes weights by steps, which need no
    validations: :class:`~prunus.GradualPruning` takes an epoch if it knows its steps, and else, as
    :class:`~prunus.OneShot` does, a quarter of the steps until all weights are removed.

    Args:
        remaining: The fraction of an irrelevant weight that is left at the next validation, above
            0 and at most 1. Default 0.5.
        every: k, at most n. Default 5, which takes a fifth of the time that 1 takes.

    Raises:
        ArgumentError: An argument is out of range.

    Example:
        >>> strength = AutomaticStrength(remaining=0.25, every=1)
        >>> strength.value(StrengthStep(lr=0.1, peak_lr=0.1, interval=2))
        0.25
        >>> strength.value(StrengthStep(lr=0.05, peak_lr=0.1, interval=2))
        0.125
    """

    remaining: float = number(0.5, above=0, most=1)
    # A prime, so that it meets every kind of step where a loop alternates between a few.
    every: int = number(5, whole=True, least=1)

    def __post_init__(self) -> None:
        validate(self)

    def period(self, interval: int) -> int:
        """Return k, given n."""
        return min(self.every, interval)

    def value(self, step: StrengthStep) -> float:
        """Return γ for the interval, in proportion to the learning rate."""
        if step.done or step.interval is None or not step.peak_lr > 0:
            return 0.0
        every = self.period(step.interval)
        if step.number % every:
            return 0.0
        # 1 − remaining^(k/n), without the loss of digits by subtraction from 1.
        shrink = -math.expm1(math.log(self.remaining) * every / step.interval)
        return shrink / 2 * (step.lr / step.peak_lr)


@dataclass(frozen=True)
class UpdateStrength:
    """γ as a fraction of the mean distance that the optimizer moves a kept weight in a step.

    It is the automatic strength for ``power=1``, which pulls every weight towards zero by the same
    amount: a weight stays where the loss moves it away from zero more steadily than that, whatever
    the optimizer, its learning rate and the scale of the loss. γ is measured at each validation and
    removal, and is 0 before the first; in between it follows the learning rate. It acts until the
    training ends.

    Args:
        fraction: γ / mean |Δw|, from 0 to 1. Default 0.15: with a constant coefficient, strengths
            that were tuned by hand for SGD with momentum and for AdamW had 0.1 to 0.2 in most of
            the training.
        every: The penalty acts in one of so many steps, with so many times γ. Default 5, which
            takes a fifth of the time that 1 takes.

    Raises:
        ArgumentError: An argument is out of range.

    Example:
        >>> strength = UpdateStrength(fraction=0.125, every=2)
        >>> strength.value(StrengthStep(lr=0.1, peak_lr=0.1, mean_update=0.5))
        0.125
        >>> strength.value(StrengthStep(lr=0.1, peak_lr=0.1, mean_update=0.5, number=1))
        0.0
    """

    fraction: float = number(0.15, least=0, most=1)
    every: int = number(5, whole=True, least=1)  # a prime, as for the automatic strength

    def __post_init__(self) -> None:
        validate(self)

    def value(self, step: StrengthStep) -> float:
        """Return γ, in proportion to the mean update."""
        if step.mean_update is None or step.number % self.every:
            return 0.0
        return self.fraction * self.every * step.mean_update


@dataclass(frozen=True)
class ConstantStrength:
    """The same γ at every step; what a plain number means.

    Args:
        gamma: γ.

    Raises:
        ArgumentError: ``gamma`` is negative, NaN or infinite.

    Example:
        >>> ConstantStrength(1e-5).value(StrengthStep(lr=0.1, peak_lr=0.1))
        1e-05
    """

    gamma: float = number(least=0)

    def __post_init__(self) -> None:
        validate(self)

    def value(self, step: StrengthStep) -> float:
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
        >>> LearningRateStrength(0.5).value(StrengthStep(lr=0.1, peak_lr=0.2))
        0.05
    """

    ratio: float = number(least=0)

    def __post_init__(self) -> None:
        validate(self)

    def value(self, step: StrengthStep) -> float:
        """Return the ratio times the learning rate."""
        return self.ratio * step.lr


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
        >>> steps = [StrengthStep(lr=0.1, peak_lr=0.1, steps_since_pruning=n) for n in (0, 1, 4, 9)]
        >>> [strength.value(step) for step in steps]
        [1.0, 0.75, 0.0, 0.0]
    """

    initial: float = number(least=0)
    steps: int = number(whole=True, least=1)

    def __post_init__(self) -> None:
        validate(self)

    def value(self, step: StrengthStep) -> float:
        """Return the value of the line at this step; 0 past its end."""
        return self.initial * max(0.0, 1.0 - step.steps_since_pruning / self.steps)


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
