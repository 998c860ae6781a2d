"""The plot of a pruner's history."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.extras import missing_extra
from prunus.errors import ArgumentError
from prunus.history import History
from prunus.recipes.run.progress import Epoch

try:
    from prunus.report.figures.drawing import FULL, styled
    from prunus.report.figures.training import training_curve
except ImportError as error:
    raise missing_extra("prunus.report", "report", error) from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_history"]


def plot_history(
    history: History, *, metric: str = "metric", bound_name: str = "floor", width: int = FULL
) -> Figure:
    """Plot the validation metric and the sparsity of a training against its validations.

    Removals, the floor, returns to the best state, and the sparsest state that met the floor are
    marked.

    Args:
        history: ``pruner.history``.
        metric: The name of the metric, for the title.
        bound_name: What the floor is called: "ceiling" where smaller metrics are better.
        width: The width in points.

    Returns:
        A figure of matplotlib, which ``figure.savefig(path)`` writes.

    Raises:
        ArgumentError: The history has no validation with a metric.
        ArgumentTypeError: ``history`` is none.
        MissingExtraError: The extra "report" is not installed.

    Example:
        >>> from prunus import Validation
        >>> validations = [
        ...     Validation(step=100, metric=0.98, sparsity=0.0, floor=0.97, met=True, best=True,
        ...                removed=50, sparsity_after=0.5),
        ...     Validation(step=200, metric=0.97, sparsity=0.5, floor=0.97, met=True, best=True,
        ...                removed=0, sparsity_after=0.5),
        ... ]
        >>> figure = plot_history(History(validations), metric="accuracy")
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['validation accuracy', 'sparsity']
    """
    raise_problems(type_problem("history", history, History, "a History", fix="pruner.history"))
    if not any(validation.metric is not None for validation in history):
        raise ArgumentError(
            "history must have a validation with a metric, but has none: call pruner.step(metric) "
            "after each validation"
        )
    points = [
        Epoch(
            phase="prune",
            epoch=number,
            loss=math.nan,
            validation_loss=math.nan,
            validation=math.nan if validation.metric is None else validation.metric,
            extra_metrics={},
            floor=validation.floor,
            sparsity=validation.sparsity,
            removed=validation.removed,
            restored=validation.restored,
        )
        for number, validation in enumerate(history, 1)
    ]
    best = [place for place, validation in enumerate(history) if validation.best]
    drawing = training_curve(points, metric, bound_name, best[-1] if best else None)
    with styled():
        figure = drawing.draw(width)
        figure.axes[-1].set_xlabel("validation")
    return figure
