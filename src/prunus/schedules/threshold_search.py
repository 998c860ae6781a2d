"""Threshold search: at a plateau, the largest removal that the loss tolerates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from prunus._utils.fields import checked, choice, number
from prunus.constraint import Constraint, Mode
from prunus.errors import ArgumentError, NonFiniteError
from prunus.schedules.base import MetricIfKept, PruningStatus, Schedule, kept_at

__all__ = ["ThresholdSearch"]


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
        >>> status = PruningStatus(
        ...     met=True,
        ...     prunable=100,
        ...     kept=100,
        ...     metric=1.0,
        ...     mode="min",
        ...     metric_if_kept=metric_if_kept,
        ... )
        >>> schedule.after_validation(status) is None    # the first is the best so far
        True
        >>> schedule.after_validation(status)            # 50 removed cost 5 percent
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
    supports_growth = False

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

    def after_validation(self, status: PruningStatus) -> int | None:
        """Count the validations without improvement, and search at a plateau."""
        metric, kept, metric_if_kept = status.metric, status.kept, status.metric_if_kept
        assert metric is not None, "needs_metric"
        assert metric_if_kept is not None, "the pruner sets it"
        if self._best is None or self._improves(metric, self._best, status.mode):
            self._best, self._waited = metric, 0
        else:
            self._waited += 1
        if self._waited < self.patience or not status.met:
            return None
        least = status.fewest(self.target)
        removed = 0
        if kept > least + status.slack:
            loss = self._measured(kept, metric_if_kept)
            self._check_mode(loss, metric, status.mode)
            removed = self._largest(loss, status, kept - least, metric_if_kept)
        self._waited = 0
        self._exhausted = removed <= status.slack or kept - removed <= least + status.slack
        if removed <= status.slack:
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

    def _largest(
        self, loss: float, status: PruningStatus, most: int, metric_if_kept: MetricIfKept
    ) -> int:
        """Return the largest number of weights, up to ``most``, within the tolerance."""
        kept, step = status.kept, 1 + status.slack
        worse = self.tolerance * abs(loss)
        bound = Constraint(loss - worse if self.mode == "max" else loss + worse, self.mode)
        within, beyond = 0, most + 1
        # ``most + 1`` is not known to be beyond the tolerance, so it does not end the search.
        while beyond - within > (step if beyond > most else max(step, self.resolution * beyond)):
            removed = (within + beyond) // 2
            if bound.met(metric_if_kept(kept - removed, self.evaluate)):
                within = removed
            else:
                beyond = removed
        return within

    def final_kept(self, prunable: int) -> int | None:
        """Return the number that ``target`` keeps; None without a target."""
        return None if self.target is None else kept_at(prunable, self.target)

    def state_dict(self) -> dict[str, Any]:
        """Return the best metric, how long it has waited, and whether nothing is left."""
        return {"best": self._best, "waited": self._waited, "exhausted": self._exhausted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._best = None if state["best"] is None else float(state["best"])
        self._waited, self._exhausted = int(state["waited"]), bool(state["exhausted"])
