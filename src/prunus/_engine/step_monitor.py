"""Detection of training that a pruner does not see."""

from __future__ import annotations

import warnings

from prunus._engine.optimizers import Optimizers
from prunus.errors import listing
from prunus.selection import Selection

__all__ = ["StepMonitor"]


class StepMonitor:
    """Warns once if two validations came without a step of the pruner's optimizers before them.

    Two faults show like that, and both deliver a network that the pruner did not make: weights
    that something else moves, such as another optimizer that this one is wrapped around, and a
    metric of another model, such as a deep copy. Whether weights have moved is read from torch's
    count of changes in place, which costs nothing.

    Args:
        optimizers: The pruner's optimizers.
        selection: The prunable tensors.
    """

    def __init__(self, optimizers: Optimizers, selection: Selection) -> None:
        self._optimizers = optimizers
        self._selection = selection
        self._steps = [0] * len(optimizers)
        self._metric: float | None = None
        self._unseen = 0
        self._suspicious = False
        self._warned = False
        self._versions = self._current_versions()

    def count_step(self, index: int) -> None:
        """Count a step of an optimizer that the pruner has seen."""
        self._steps[index] += 1

    def before_validation(self, metric: float | None) -> None:
        """Warn if the training since the last validation was not seen.

        Args:
            metric: The validation metric, or None.
        """
        problem = self._idle_problem() if any(self._steps) else self._problem(metric)
        self._suspicious = problem is not None
        # Once may be the loading of a checkpoint, or a repeated measurement.
        if problem is not None and self._unseen and not self._warned:
            self._warned = True
            warnings.warn(problem, stacklevel=4)

    def after_validation(self, metric: float | None) -> None:
        """Begin the time until the next validation.

        Args:
            metric: The metric of the present weights; None if it is not known, as after a removal.
        """
        self._unseen += self._suspicious
        self._steps, self._metric = [0] * len(self._optimizers), metric
        self._versions = self._current_versions()

    def _idle_problem(self) -> str | None:
        """Return which optimizers took no step while others did, or None."""
        steps = zip(self._optimizers, self._steps, strict=True)
        idle = [type(optimizer).__name__ for optimizer, count in steps if not count]
        if not idle:
            return None
        return (
            f"{listing(idle)} took no step between two validations, but the pruner's other "
            "optimizers did: a step counts once each of them has taken one, so that no step counts "
            "for schedule and penalty. Pass only optimizers that train the model to Pruner"
        )

    def _problem(self, metric: float | None) -> str | None:
        """Return what points to training that was not seen, or None."""
        name = self._optimizers.names
        current = self._current_versions()
        moved = [key for key, version in self._versions.items() if current[key] != version]
        if moved:
            return (
                f"no step of the pruner's optimizer ({name}) was seen between two validations, but "
                f"{listing(moved)} changed, so that neither penalty nor masks apply: something "
                "else trains the model. If the optimizer is wrapped around the one that moves the "
                "weights, pass that one to Pruner; if a new optimizer was built, build a new Pruner"
            )
        if metric is None or self._metric is None or metric == self._metric:
            return None
        return (
            f"the validation metric changed from {self._metric:g} to {metric:g}, but no step of "
            f"the pruner's optimizer ({name}) was seen and no weight of its model changed: another "
            "model is trained or validated, such as a deep copy. Pass the model in training and "
            "its optimizer to Pruner"
        )

    def _current_versions(self) -> dict[str, int]:
        """Return torch's number of changes in place of each tensor."""
        return {name: t.parameter._version for name, t in self._selection.items()}
