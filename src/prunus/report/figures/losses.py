"""The loss of training and validation by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from prunus.recipes.run.progress import Epoch
from prunus.report import numbers
from prunus.report.figures.drawing import Drawing
from prunus.report.figures.palette import BLUE, ORANGE
from prunus.report.figures.training import draw_with_gaps, label_epochs, mark_phases

__all__ = ["loss_curve"]

_LOGARITHMIC_FROM = 20
"""The quotient of the largest and the smallest loss from which the axis is logarithmic."""


def loss_curve(epochs: Sequence[Epoch]) -> Drawing:
    """Return the drawing of the loss, of at least one epoch."""
    last = epochs[-1]
    alt = (
        f"Line chart of the loss over {len(epochs)} epochs; it ends at {numbers.value(last.loss)} "
        f"in training and {numbers.value(last.validation_loss)} in validation."
    )
    return Drawing("loss", "Loss", alt, lambda width: _draw(epochs, width))


def _draw(epochs: Sequence[Epoch], width: int) -> Figure:
    figure = Figure(figsize=(width / 72, 250 / 72), layout="constrained")
    axes = figure.subplots()
    places = np.arange(1, len(epochs) + 1)
    lines = {
        "training": (np.array([epoch.loss for epoch in epochs]), BLUE),
        "validation": (np.array([epoch.validation_loss for epoch in epochs]), ORANGE),
    }
    positive = np.concatenate([line[np.isfinite(line) & (line > 0)] for line, _ in lines.values()])
    if len(positive) and positive.max() > _LOGARITHMIC_FROM * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: f"{y:.10f}".rstrip("0").rstrip("."))
        )
        axes.yaxis.set_minor_formatter(NullFormatter())
    for line, color in lines.values():
        draw_with_gaps(axes, places, line, color.light)
    dense = sum(epoch.phase == "dense" for epoch in epochs)
    mark_phases(axes, dense, len(epochs))
    label_epochs(axes, 5)
    for place, (name, (_, color)) in enumerate(lines.items()):
        # In the upper right corner, where a falling loss leaves room.
        axes.text(
            0.99,
            0.97 - 0.09 * place,
            name,
            transform=axes.transAxes,
            horizontalalignment="right",
            verticalalignment="top",
            color=color.light,
        )
    return figure
