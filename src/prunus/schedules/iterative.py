"""Iterative pruning: removals after validations, as long as the metric allows."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any

from prunus._utils.fields import number
from prunus.schedules.base import PruningStatus, Restore, Schedule, kept_at

__all__ = ["IterativePruning"]


_FRACTION = 0.1
"""The fraction that is removed at first, and again whenever the floor is met, if none is given."""

_SMALLEST_FRACTION = 0.01
"""The fraction below which halving it ends."""

_WINDOW = 20
"""Changes of the metric that its noise is estimated from."""

_RECOVERY = 10
"""Validations that a network may stay below the floor before it returns to the best state."""


@dataclass(kw_only=True)
class IterativePruning(Schedule):
    """The paper's algorithm: remove a fraction of what is left while the metric meets the floor.

    At each validation, if the metric meets the floor, the pruner keeps the state as the best so far
    and then removes ``fraction`` of the weights that remain. Otherwise it trains on.

    Without ``fraction`` it finds how much to remove. The metric of a small validation set changes
    from one validation to the next by more than a removal costs, and rises again as the learning
    rate falls. So a tenth is also removed while the metric is below the floor by no more than its
    noise: two standard deviations, estimated from its last 20 changes. After 10 validations that
    are below by more, the pruner returns to the best state and removes less from there: half of the
    fraction before, and only while the metric is below the floor by half as much of the noise. At
    the target, where nothing is left to remove, a metric within the noise has longer to meet the
    floor: 20 validations, or three for each removal since it last did. Only states that met the
    floor are delivered.

    Args:
        fraction: The fraction of the remaining weights to remove each time, above 0 and below 1.
            Default None: as much as the floor allows.
        target: The sparsity to stop at, or None (default) to continue while the floor allows.
        patience: The schedule is done after this many consecutive validations that do not meet the
            floor; None (default) to wait without limit.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Bonetta, Ribero, Cancelliere, arXiv 2204.04977, the iterative pruning algorithm, for a
    given fraction.

    Example:
        >>> schedule = IterativePruning(fraction=0.2)
        >>> schedule.after_validation(PruningStatus(met=True, prunable=1000, kept=1000))
        800
        >>> schedule.after_validation(PruningStatus(met=False, prunable=1000, kept=800)) is None
        True
    """

    fraction: float | None = number(None, above=0, below=1, optional=True)
    target: float | None = number(None, above=0, below=1, optional=True)
    patience: int | None = number(None, whole=True, least=1, optional=True)

    needs_metric = True
    supports_growth = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._waited = 0
        self._reached = False
        self._fraction = _FRACTION if self.fraction is None else self.fraction
        self._recovering = 0
        self._descent = 0
        self._margins: list[float] = []

    @property
    def done(self) -> bool:
        """Whether the target or the least density is reached, or patience is exhausted."""
        return self._reached or (self.patience is not None and self._waited >= self.patience)

    def after_validation(self, status: PruningStatus) -> int | Restore | None:
        """Remove a fraction if the floor is met, or nearly met if no fraction was given."""
        self._waited = 0 if status.met else self._waited + 1
        least = status.fewest(self.target)
        if self.fraction is not None:
            return self._remove(status, least) if status.met else None
        if math.isfinite(status.margin):
            self._margins = [*self._margins, status.margin][-_WINDOW - 1 :]
        if status.met:
            self._recovering = self._descent = 0
            return self._remove(status, least)
        if self.done:
            return None
        near = status.margin >= -self._noise * self._fraction / _FRACTION
        if near and status.kept > least + status.slack:
            self._recovering, self._descent = 0, self._descent + 1
            return self._remove(status, least)
        recovery = max(2 * _RECOVERY, 3 * self._descent) if near else _RECOVERY
        return self._return_to_best(status, least, recovery)

    def _remove(self, status: PruningStatus, least: int) -> int | None:
        if status.kept <= least + status.slack:
            self._reached = self._reached or status.met
            return None
        return max(least, self._reduced(status.kept, status))

    def _return_to_best(self, status: PruningStatus, least: int, recovery: int) -> Restore | None:
        """Return to the best state after too long a recovery, if it keeps more weights."""
        self._recovering += 1
        best = status.best_kept
        if self._recovering < recovery or best is None:
            return None
        if best <= max(least + status.slack, status.kept):
            return None
        self._recovering = self._descent = 0
        self._fraction = max(self._fraction / 2, _SMALLEST_FRACTION)
        return Restore(max(least, self._reduced(best, status)))

    def _reduced(self, kept: int, status: PruningStatus) -> int:
        """Return how many weights to keep of so many: fewer by at least one group."""
        return kept - max(1 + status.slack, round(self._fraction * kept))

    @property
    def _noise(self) -> float:
        """Two standard deviations of the metric, as its last changes show it.

        A change is the difference of two measurements, so its variance is twice theirs. Changes of
        zero do not count: a metric of few examples has few values, and seems exact where it stays.
        """
        changes = [b - a for a, b in itertools.pairwise(self._margins) if a != b]
        return math.sqrt(2 * statistics.fmean(x * x for x in changes)) if changes else 0.0

    def final_kept(self, prunable: int) -> int | None:
        """Return the number that ``target`` keeps; None without a target."""
        return None if self.target is None else kept_at(prunable, self.target)

    def state_dict(self) -> dict[str, Any]:
        """Return how long it has waited, whether the target was reached, and what it has found."""
        return {
            "waited": self._waited,
            "reached": self._reached,
            "fraction": self._fraction,
            "recovering": self._recovering,
            "descent": self._descent,
            "margins": list(self._margins),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._waited, self._reached = int(state["waited"]), bool(state["reached"])
        self._fraction = float(state["fraction"])
        self._recovering, self._descent = int(state["recovering"]), int(state["descent"])
        self._margins = [float(margin) for margin in state["margins"]]
