"""Schedules: when weights are removed, and how many are then kept.

The pruner calls a schedule after every optimizer step and after every validation; it returns the
number of weights to keep, or None to remove nothing. It does not depend on tensors, scores or
penalties. The base class never removes anything: the dense baseline.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from prunus._utils.checks import either_problem, number_problem
from prunus._utils.fields import checked, choice, number, setting, validate
from prunus.constraint import Constraint, Mode
from prunus.errors import ArgumentError, NonFiniteError, PrunusError

__all__ = [
    "GradualPruning",
    "IterativePruning",
    "MetricIfKept",
    "OneShot",
    "Schedule",
    "ThresholdSearch",
]


MetricIfKept = Callable[[int, Callable[[], float]], float]
"""Returns what a function measures with only so many weights kept."""


@dataclass(kw_only=True)
class Schedule:
    """Removes nothing; the base of every schedule."""

    needs_metric = False
    """Whether the schedule cannot decide without a metric."""

    def __post_init__(self) -> None:
        validate(self, *self._problems())

    def _problems(self) -> Iterator[str | None]:
        """Yield what is wrong with the arguments beyond the bounds of each field."""
        yield from ()

    @property
    def done(self) -> bool:
        """Whether nothing is left to remove; the network has yet to recover then."""
        return False

    def after_step(self, *, step: int, prunable: int) -> int | None:
        """Return how many weights to keep after optimizer step ``step``, counted from 1."""
        return None

    def after_validation(
        self, *, met: bool, prunable: int, kept: int, least: int = 1
    ) -> int | None:
        """Return how many weights to keep after a validation.

        Args:
            met: Whether its metric met the floor.
            prunable: How many weights may be pruned.
            kept: How many of them are kept now.
            least: The fewest that the pruner's ``min_density`` allows to keep.
        """
        return None

    def search(
        self,
        *,
        metric: float | None,
        mode: Mode,
        met: bool,
        prunable: int,
        kept: int,
        least: int,
        metric_if_kept: MetricIfKept,
    ) -> int | None:
        """Return how many weights to keep after trial removals, or None to remove nothing.

        The pruner calls it after each validation at which :meth:`after_validation` returned None.

        Args:
            metric: The validation metric, or None.
            mode: "max" if larger metrics are better, else "min".
            met: Whether the metric met the floor.
            prunable: How many weights may be pruned.
            kept: How many of them are kept now.
            least: The fewest that the pruner's ``min_density`` allows to keep.
            metric_if_kept: Removes weights until so many are kept, calls a function that measures
                the model, restores everything, and returns the result; the same in all processes.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what changes while the schedule runs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        if set(state) != set(self.state_dict()):
            raise PrunusError(
                f"this is not the state of a {type(self).__name__}: expected "
                f"{sorted(self.state_dict())}, got {sorted(state)}"
            )


@dataclass(kw_only=True)
class IterativePruning(Schedule):
    """The paper's algorithm: remove a fraction of what is left while the metric meets the floor.

    At each validation, if the metric meets the floor, the pruner keeps the state as the best so far
    and then removes ``fraction`` of the weights that remain. Otherwise it trains on.

    Args:
        fraction: The fraction of the remaining weights to remove each time, above 0 and below 1.
            Default 0.1.
        target: The sparsity to stop at, or None (default) to continue while the floor allows.
        patience: The schedule is done after this many consecutive validations that do not meet the
            floor; None (default) to wait without limit.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Bonetta, Ribero, Cancelliere, arXiv 2204.04977, the iterative pruning algorithm.

    Example:
        >>> schedule = IterativePruning(fraction=0.1)
        >>> schedule.after_validation(met=True, prunable=1000, kept=1000)
        900
        >>> schedule.after_validation(met=False, prunable=1000, kept=900) is None
        True
    """

    fraction: float = number(0.1, above=0, below=1)
    target: float | None = number(None, above=0, below=1, optional=True)
    patience: int | None = number(None, whole=True, least=1, optional=True)

    needs_metric = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._waited = 0
        self._reached = False

    @property
    def done(self) -> bool:
        """Whether the target or the least density is reached, or patience is exhausted."""
        return self._reached or (self.patience is not None and self._waited >= self.patience)

    def after_validation(
        self, *, met: bool, prunable: int, kept: int, least: int = 1
    ) -> int | None:
        """Remove a fraction if the floor is met."""
        if not met:
            self._waited += 1
            return None
        self._waited = 0
        least = max(1, least, 0 if self.target is None else _kept(prunable, self.target))
        if kept <= least:
            self._reached = True
            return None
        return max(least, kept - max(1, round(self.fraction * kept)))

    def state_dict(self) -> dict[str, Any]:
        """Return how long it has waited and whether the target was reached."""
        return {"waited": self._waited, "reached": self._reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._waited, self._reached = int(state["waited"]), bool(state["reached"])


_END = 0.5
"""The default end of :class:`GradualPruning`, as a fraction of the training."""


@dataclass(kw_only=True)
class GradualPruning(Schedule):
    """Raises the sparsity along a polynomial, steep at first, to an exact number of kept weights.

    With f running from 0 at step ``begin`` to 1 at step ``end``, and n prunable weights,

        kept = final + (n − final) · (1 − f)^power.

    Pass the length of the training, as for ``torch.optim.lr_scheduler.OneCycleLR``: either
    ``total_steps``, or ``epochs`` and ``steps_per_epoch``. ``begin`` and ``end`` are fractions of
    it then. Or pass ``end`` alone, as a number of steps. All steps are optimizer steps: those of an
    epoch are the batches divided by the batches that are accumulated.

    Args:
        sparsity: Final fraction of removed weights. Either this or ``kept``.
        kept: Final number of kept prunable weights. Either this or ``sparsity``.
        total_steps: The number of optimizer steps in the whole training, counted from the pruner's
            first. Default None.
        epochs: The number of epochs in the whole training. Default None.
        steps_per_epoch: The number of optimizer steps in an epoch. Default None.
        end: When the final number is reached: a fraction of the training, above 0 and at most 1,
            by default 0.5, so that the other half is left to recover; or without a length of the
            training the step, counted from the pruner's first.
        begin: When the curve begins, in the same unit as ``end``; the first weights are removed
            ``every`` steps later. Default 0.
        every: Steps from one removal to the next. Default None: 100, and at most a hundredth of
            the training if its length is known.
        power: Default 3, the cubic schedule.

    Raises:
        ArgumentError: An argument is out of range, or the length is passed twice or in part.

    Source: Zhu and Gupta, arXiv 1710.01878, equation 1.

    Example:
        >>> schedule = GradualPruning(sparsity=0.9, epochs=10, steps_per_epoch=20)
        >>> [schedule.after_step(step=s, prunable=1000) for s in (49, 50, 100)]
        [None, 212, 100]
        >>> schedule = GradualPruning(sparsity=0.9, begin=0, end=100, every=50)
        >>> [schedule.after_step(step=s, prunable=1000) for s in (49, 50, 100)]
        [None, 212, 100]
    """

    sparsity: float | None = number(None, above=0, below=1, optional=True)
    kept: int | None = number(None, whole=True, least=1, optional=True)
    total_steps: int | None = number(None, whole=True, least=1, optional=True)
    epochs: int | None = number(None, whole=True, least=1, optional=True)
    steps_per_epoch: int | None = number(None, whole=True, least=1, optional=True)
    end: float | None = setting(None)
    begin: float = setting(0)
    every: int | None = number(None, whole=True, least=1, optional=True)
    power: float = number(3.0, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._step = 0
        total, begin, end = self._length, self.begin, self.end
        if total is None:
            assert end is not None, "checked by _problems"
            self._begin, self._end = int(begin), int(end)
        else:
            # At least a step apart, however few steps there are.
            self._begin = min(round(begin * total), total - 1)
            self._end = max(self._begin + 1, round((_END if end is None else end) * total))
        self._every = self.every or (100 if total is None else max(1, min(100, total // 100)))

    @property
    def _length(self) -> int | None:
        """The number of steps in the whole training, or None if it is not known."""
        if self.epochs is not None and self.steps_per_epoch is not None:
            return self.epochs * self.steps_per_epoch
        return self.total_steps

    def _problems(self) -> Iterator[str | None]:
        yield either_problem(sparsity=self.sparsity, kept=self.kept)
        lengths = {
            "total_steps": self.total_steps,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
        }
        passed = [name for name, value in lengths.items() if value is not None]
        if passed not in ([], ["total_steps"], ["epochs", "steps_per_epoch"]):
            found = " and ".join(f"{name}={lengths[name]!r}" for name in passed)
            yield (
                "pass the length of the training as either total_steps, or epochs and "
                f"steps_per_epoch, but got {found}"
            )
        elif passed:
            yield from self._fraction_problems()
        elif self.end is None:
            yield (
                "pass total_steps, or epochs and steps_per_epoch, or the step end, but got none of "
                "them"
            )
        else:
            yield from self._step_problems()

    def _fraction_problems(self) -> Iterator[str | None]:
        """Yield what is wrong with ``begin`` and ``end`` as fractions of the training."""
        end = _END if self.end is None else self.end
        problems = (
            number_problem("end", end, above=0, most=1),
            number_problem("begin", self.begin, least=0, below=1),
        )
        if not any(problems):
            problems = (number_problem("begin", self.begin, least=0, below=end), None)
        for problem in problems:
            if problem is not None:
                fix = "" if ": pass " in problem else ": divide steps by those of the training"
                yield f"as a fraction of the training, {problem}{fix}"

    def _step_problems(self) -> Iterator[str | None]:
        """Yield what is wrong with ``begin`` and ``end`` as numbers of steps."""
        problems = (
            number_problem("end", self.end, whole=True, least=1),
            number_problem("begin", self.begin, whole=True, least=0),
        )
        if not any(problems):
            problems = (number_problem("begin", self.begin, least=0, below=self.end), None)
        fractions = [v for v in (self.begin, self.end) if isinstance(v, float) and 0 < v <= 1]
        for problem in problems:
            fix = "; fractions of the training need total_steps, too" if fractions else ""
            yield None if problem is None else problem + fix

    @property
    def done(self) -> bool:
        """Whether the final number has been reached; the network has yet to recover then."""
        return self._step >= self._end

    def after_step(self, *, step: int, prunable: int) -> int | None:
        """Follow the polynomial."""
        self._step = step
        due = (step - self._begin) % self._every == 0 or step == self._end
        if not (due and self._begin <= step <= self._end):
            return None
        final = self.kept if self.kept is not None else _kept(prunable, self.sparsity or 0.0)
        left: float = (self._end - step) / (self._end - self._begin)
        return round(final + max(0, prunable - final) * float(left**self.power))

    def state_dict(self) -> dict[str, Any]:
        """Return the last step seen."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._step = int(state["step"])


@dataclass(kw_only=True)
class OneShot(Schedule):
    """Removes all weights at once that are to be removed.

    Args:
        sparsity: The fraction of removed weights.
        at: The optimizer step after which to remove; None (default) for the first validation.

    Raises:
        ArgumentError: An argument is out of range.

    Example:
        >>> schedule = OneShot(sparsity=0.75)
        >>> schedule.after_validation(met=True, prunable=8, kept=8), schedule.done
        (2, True)
    """

    sparsity: float = number(above=0, below=1)
    at: int | None = number(None, whole=True, least=1, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the weights were removed."""
        return self._done

    def after_step(self, *, step: int, prunable: int) -> int | None:
        """Remove if this is step ``at``."""
        return self._once(prunable) if self.at == step else None

    def after_validation(
        self, *, met: bool, prunable: int, kept: int, least: int = 1
    ) -> int | None:
        """Remove at the first validation, if ``at`` is None."""
        return self._once(prunable) if self.at is None and not self._done else None

    def _once(self, prunable: int) -> int:
        self._done = True
        return _kept(prunable, self.sparsity)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the weights were removed."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._done = bool(state["done"])


def _function_problem(name: str, value: object) -> str | None:
    if callable(value) and not isinstance(value, type):
        return None
    return f"{name} must be a function without arguments that returns a number, but is {value!r}"


@dataclass(kw_only=True)
class ThresholdSearch(Schedule):
    """At a plateau, removes as many weights as a tolerance of the loss allows.

    When the metric passed to ``pruner.step`` has not improved by ``improvement`` for ``patience``
    validations, and meets the floor, the loss L of the model is measured by ``evaluate``. Then the
    largest number of weights is removed, those with the smallest scores, for which the loss stays
    at or below (1 + tolerance) · L. It is found by bisection: each trial removes weights, calls
    ``evaluate``, and restores the model, its masks and buffers to the last bit, also if
    ``evaluate`` raises an error. The loss is taken to rise with the number of removed weights.

    The original also restores the state of the lowest loss before it searches; here the search
    begins from the present state.

    Args:
        evaluate: Returns the loss of the model on the validation data. It must not train. It is
            called about log2(n / resolution) times per search of n weights, without gradients.
            In several processes it must return the same number in all of them.
        mode: "min" (default) if ``evaluate`` returns a loss; "max" if larger numbers are better,
            such as an accuracy. The metric passed to ``pruner.step`` has the pruner's own mode.
        tolerance: The fraction of the loss by which it may become worse in one search, above 0.
            Default 0.05.
        patience: The number of consecutive validations without improvement that make a plateau.
            Default 20.
        improvement: The fraction of the best metric since the last removal by which a metric must
            be better to count. Default 0.01.
        resolution: The search stops when the number of removed weights is known to within this
            fraction of it, at least to within one weight. Default 0.05; 0 for an exact search.
        target: The sparsity to stop at, or None (default) to continue while the tolerance allows.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Tartaglione, Bragagnolo, Fiandrotti, Grangetto, LOBSTER, arXiv 2011.09905.

    Example:
        >>> schedule = ThresholdSearch(evaluate=lambda: 1.0, patience=1, resolution=0.0)
        >>> def metric_if_kept(kept, evaluate):
        ...     return evaluate() + 0.001 * (100 - kept)
        >>> arguments = dict(
        ...     mode="min", met=True, prunable=100, kept=100, least=1, metric_if_kept=metric_if_kept
        ... )
        >>> schedule.search(metric=1.0, **arguments) is None    # the first is the best so far
        True
        >>> schedule.search(metric=1.0, **arguments)            # 50 removed cost 5 percent
        50
    """

    evaluate: Callable[[], float] = checked(by=_function_problem)
    mode: Mode = choice("min", ("max", "min"))
    tolerance: float = number(0.05, above=0)
    patience: int = number(20, whole=True, least=1)
    improvement: float = number(0.01, least=0, below=1)
    resolution: float = number(0.05, least=0, below=1)
    target: float | None = number(None, above=0, below=1, optional=True)

    needs_metric = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._best: float | None = None
        self._waited = 0
        self._exhausted = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy that shares ``evaluate``, which would copy the model that it measures."""
        memo[id(self.evaluate)] = self.evaluate
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        vars(clone).update(copy.deepcopy(vars(self), memo))
        return clone

    @property
    def done(self) -> bool:
        """Whether the last search removed nothing, or the target or the least is reached."""
        return self._exhausted

    def search(
        self,
        *,
        metric: float | None,
        mode: Mode,
        met: bool,
        prunable: int,
        kept: int,
        least: int,
        metric_if_kept: MetricIfKept,
    ) -> int | None:
        """Count the validations without improvement, and search at a plateau."""
        assert metric is not None, "needs_metric"
        if self._best is None or self._improves(metric, self._best, mode):
            self._best, self._waited = metric, 0
        else:
            self._waited += 1
        if self._waited < self.patience or not met:
            return None
        least = max(1, least, 0 if self.target is None else _kept(prunable, self.target))
        removed = 0
        if kept > least:
            loss = self._measured(kept, metric_if_kept)
            self._check_mode(loss, metric, mode)
            removed = self._largest(loss, kept, kept - least, metric_if_kept)
        self._waited = 0
        self._exhausted = removed == 0 or kept - removed <= least
        if removed == 0:
            return None
        self._best = None  # the metric after a removal is another one
        return kept - removed

    def _improves(self, metric: float, best: float, mode: Mode) -> bool:
        margin = self.improvement * abs(best)
        return metric > best + margin if mode == "max" else metric < best - margin

    def _measured(self, kept: int, metric_if_kept: MetricIfKept) -> float:
        loss = metric_if_kept(kept, self.evaluate)
        if not math.isfinite(loss):
            raise NonFiniteError(f"evaluate() of ThresholdSearch must be finite, but is {loss}")
        return loss

    def _check_mode(self, loss: float, metric: float, mode: Mode) -> None:
        """Check the mode where ``evaluate`` returns the validation metric itself.

        With the wrong mode every removal would be within the tolerance.
        """
        if mode != self.mode and loss == metric:
            raise ArgumentError(
                f"evaluate() returned the validation metric itself, {metric:.6g}, for which the "
                f'pruner has mode="{mode}", but ThresholdSearch has mode="{self.mode}": pass '
                f'ThresholdSearch(mode="{mode}"), or an evaluate that returns a loss'
            )

    def _largest(self, loss: float, kept: int, most: int, metric_if_kept: MetricIfKept) -> int:
        """Return the largest number of weights, up to ``most``, within the tolerance."""
        worse = self.tolerance * abs(loss)
        bound = Constraint(loss - worse if self.mode == "max" else loss + worse, self.mode)
        within, beyond = 0, most + 1
        # ``most + 1`` is not known to be beyond the tolerance, so it does not end the search.
        while beyond - within > (1 if beyond > most else max(1, self.resolution * beyond)):
            removed = (within + beyond) // 2
            if bound.met(metric_if_kept(kept - removed, self.evaluate)):
                within = removed
            else:
                beyond = removed
        return within

    def state_dict(self) -> dict[str, Any]:
        """Return the best metric, how long it has waited, and whether nothing is left."""
        return {"best": self._best, "waited": self._waited, "exhausted": self._exhausted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._best = None if state["best"] is None else float(state["best"])
        self._waited, self._exhausted = int(state["waited"]), bool(state["exhausted"])


def _kept(prunable: int, sparsity: float) -> int:
    return prunable - round(sparsity * prunable)
