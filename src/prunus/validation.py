"""The outcome of a validation: what was removed, and what penalty and removal did before it."""

from __future__ import annotations

from dataclasses import dataclass

from prunus._utils.digits import format_metric
from prunus._utils.text_table import text_table

__all__ = ["VALIDATION_COLUMNS", "PenaltyReport", "Validation", "validation_cells"]


@dataclass(frozen=True, kw_only=True)
class PenaltyReport:
    """What the penalty did in the first step after the previous validation that it acted in.

    Attributes:
        mean_coefficient: The mean irrelevance coefficient of the weights that are kept, from 0 to
            1. Near 1 the penalty is plain L2.
        irrelevant: The fraction of the kept weights with a coefficient above one half.
        shrink: The fraction by which a weight with a coefficient of 1 shrinks in a step, on average
            over the steps: 2γ, times the learning rate if the penalty is added to the gradient, as
            it is for plain SGD; adaptive optimizers scale that. None for a penalty of |w|, which
            shrinks by an amount.
        weight_decay: The fraction by which the optimizer's own weight decay shrinks each weight in
            a step: learning rate times weight decay.
    """

    mean_coefficient: float
    irrelevant: float
    shrink: float | None
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The outcome of one :meth:`Pruner.step`.

    Metric and sparsity belong together: both are of the model as it was measured, before weights
    were removed because of the metric. ``str()`` of it is a table of one row.

    Attributes:
        step: The number of optimizer steps before it.
        metric: The validation metric, or None if the call had none.
        sparsity: The sparsity at which the metric was measured.
        floor: The floor as a number, or None if there is none.
        met: Whether the metric meets the floor.
        best: Whether the state was kept as the best so far.
        removed: How many weights were removed after the metric was measured.
        sparsity_after: The sparsity after the removal, or after the return to the best state.
        restored: Whether the pruner returned to the best state before it removed them.
        change: The metric minus that of the previous validation; None if there was none, or if the
            pruner returned to the best state after it.
        predicted_cost: By how much the training loss was expected to rise, to second order and
            without recovery, by what was removed between the previous validation and this metric.
            None if nothing was removed, or if the score does not predict it;
            :class:`~prunus.FisherScore` does, with ``examples=`` the batch size.
        penalty: What the penalty did; None without one, with ``apply="loss"``, and if it did not
            act since the previous validation.
    """

    step: int
    metric: float | None
    sparsity: float
    floor: float | None
    met: bool
    best: bool
    removed: int
    sparsity_after: float
    restored: bool = False
    change: float | None = None
    predicted_cost: float | None = None
    penalty: PenaltyReport | None = None

    def __str__(self) -> str:
        return text_table(VALIDATION_COLUMNS, [validation_cells(self)], text_columns=0)


VALIDATION_COLUMNS = (
    *("step", "metric", "floor", "sparsity", "removed", "after", "predicted cost", "state"),
)
"""The titles of a table of validations."""


def validation_cells(validation: Validation) -> list[str]:
    """Return the cells of a row of a table of validations."""
    cost, floor = validation.predicted_cost, validation.floor
    notes = ["best"] * validation.best + ["restored"] * validation.restored
    if floor is not None and not validation.met:
        notes.insert(0, "missed")
    return [
        f"{validation.step:,}",
        "–" if validation.metric is None else format_metric(validation.metric),
        "–" if floor is None else format_metric(floor),
        f"{validation.sparsity:.4f}",
        f"{validation.removed:,}",
        f"{validation.sparsity_after:.4f}",
        "–" if cost is None else f"{cost:.2g}",
        ", ".join(notes),
    ]
