"""The base of all schedules, and what they decide on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prunus._utils.fields import validate
from prunus.constraint import Mode
from prunus.errors import PrunusError

__all__ = [
    "MetricIfKept",
    "PruningStatus",
    "Restore",
    "Schedule",
    "hundredth",
    "kept_at",
    "removal_interval",
]


MetricIfKept = Callable[[int, Callable[[], float]], float]
"""Returns what a function measures with only so many weights kept."""


@dataclass(frozen=True, kw_only=True)
class PruningStatus:
    """What a schedule decides on after a validation.

    Attributes:
        met: Whether the metric met the floor.
        prunable: How many weights may be pruned.
        kept: How many of them are kept now.
        least: The fewest that the pruner's ``min_density``, ``pattern`` and ``allocation`` allow to
            keep.
        slack: By how many weights a removal may fall short, because a pattern's groups are removed
            whole; 0 without such a pattern.
        metric: The validation metric, or None.
        mode: "max" if larger metrics are better, else "min".
        margin: By how much the metric is better than the floor, below 0 if it is worse; infinity
            without a floor.
        best_kept: How many weights the best state keeps that met the floor; None if there is none.
        metric_if_kept: Removes weights until so many are kept, calls a function that measures the
            model, restores everything, and returns the result; the same in all processes.
    """

    met: bool
    prunable: int
    kept: int
    least: int = 1
    slack: int = 0
    metric: float | None = None
    mode: Mode = "max"
    margin: float = math.inf
    best_kept: int | None = None
    metric_if_kept: MetricIfKept | None = None

    def fewest(self, target: float | None) -> int:
        """Return the fewest weights to keep: at least 1, by ``least``, and by a target sparsity."""
        return max(1, self.least, 0 if target is None else kept_at(self.prunable, target))


@dataclass(frozen=True)
class Restore:
    """A decision to return to the best state that met the floor, and to remove less from there.

    Attributes:
        keep: How many weights to keep of that state.
    """

    keep: int


@dataclass(kw_only=True)
class Schedule:
    """Removes nothing; the base of every schedule."""

    needs_metric = False
    """Whether the schedule cannot decide without a metric."""

    supports_growth = True
    """Whether removed weights may return; not if it relies on states that only become sparser."""

    def __post_init__(self) -> None:
        validate(self, *self._problems())

    def _problems(self) -> Iterator[str | None]:
        """Yield what is wrong with the arguments beyond the bounds of each field."""
        yield from ()

    @property
    def done(self) -> bool:
        """Whether nothing is left to remove; the network has yet to recover then."""
        return False

    @property
    def interval(self) -> int | None:
        """Steps from which the penalty's strength is found as long as no validation was seen.

        None for a schedule that removes weights after validations only.
        """
        return None

    @property
    def last_step(self) -> int | None:
        """The optimizer step of the last removal, counted from 1; None if it is open."""
        return None

    def after_step(self, *, step: int, prunable: int) -> int | None:
        """Return how many weights to keep after optimizer step ``step``, counted from 1."""
        return None

    def after_validation(self, status: PruningStatus) -> int | Restore | None:
        """Return how many weights to keep after a validation, of this state or of the best one."""
        return None

    def final_kept(self, prunable: int) -> int | None:
        """Return how many weights are kept in the end; None if that is open.

        An allocation with targets for single tensors approaches them in step with it. A floor may
        end the removals before.
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


def hundredth(total_steps: int, most: int = 100) -> int:
    """Return a hundredth of a training, rounded down, at least 1 and at most ``most`` steps."""
    return max(1, min(most, total_steps // 100))


def removal_interval(steps: int) -> int:
    """Return the interval of a schedule that removes all weights within so many steps."""
    return max(1, round(steps / 4))


def kept_at(prunable: int, sparsity: float) -> int:
    """Return how many of the prunable weights a sparsity keeps."""
    return prunable - round(sparsity * prunable)
