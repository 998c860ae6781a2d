"""The training curve: validation metric and sparsity by epoch, with floor, removals and returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from prunus.recipes.run.progress import Epoch
from prunus.report import numbers
from prunus.report.figures.drawing import FULL, HALF, Drawing
from prunus.report.figures.palette import BLUE, GREEN, INK, MUTED, ORANGE
from prunus.report.text import plain_label
from prunus.studies.tables import format_sparsity

__all__ = [
    "draw_with_gaps",
    "label_epochs",
    "mark_phases",
    "removals",
    "returns",
    "training_curve",
]


def removals(epochs: Sequence[Epoch]) -> list[int]:
    """Return the places of the epochs in or after which weights were removed.

    A schedule removes them between two validations or right after one.
    """
    places = []
    for place, epoch in enumerate(epochs):
        before = epochs[place - 1] if place else None
        during = epoch.sparsity > (0.0 if before is None else before.sparsity)
        if epoch.removed or (during and (before is None or not before.removed)):
            places.append(place)
    return places


def returns(epochs: Sequence[Epoch]) -> list[int]:
    """Return the places of the epochs after which the pruner returned to the best state."""
    return [place for place, epoch in enumerate(epochs) if epoch.restored]


def training_curve(
    epochs: Sequence[Epoch], metric: str, bound_name: str, delivered: int | None
) -> Drawing:
    """Return the drawing of validation metric and sparsity.

    Args:
        epochs: The history, of at least one epoch.
        metric: The name of the metric.
        bound_name: The name of the floor.
        delivered: The place of the epoch whose state was delivered, or None.
    """
    last = epochs[-1]
    floors = [epoch.floor for epoch in epochs if epoch.floor is not None]
    bound = f", with the {bound_name} at {numbers.value(floors[-1])}" if floors else ""
    alt = (
        f"Line chart of the validation {metric} over {len(epochs)} epochs{bound}; it ends at "
        f"{numbers.value(last.validation)}. Below it the sparsity, which ends at "
        f"{format_sparsity(last.sparsity)}, with {len(removals(epochs))} epochs in which "
        "weights were removed"
    )
    back = len(returns(epochs))
    alt += f" and {back} after which the pruner returned to the best state." if back else "."
    hidden = len(_hidden(epochs))
    caption = "Ticks above the sparsity mark epochs in which weights were removed."
    if back:
        caption += " Triangles mark epochs after which the pruner returned to the best state."
    if hidden:
        plural = "validation lies" if hidden == 1 else "validations lie"
        caption += f" {hidden} early {plural} outside the vertical axis."
    return Drawing(
        "training",
        f"Validation {metric} and sparsity",
        alt,
        lambda width: _draw(epochs, metric, bound_name, delivered, width),
        caption,
        wide=FULL,
    )


def _draw(
    epochs: Sequence[Epoch], metric: str, bound_name: str, delivered: int | None, width: int
) -> Figure:
    figure = Figure(figsize=(width / 72, (380 if width > HALF else 330) / 72), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    _draw_metric(upper, epochs, metric, bound_name, delivered)
    _draw_sparsity(lower, epochs)
    lower.set_xlim(0.5, len(epochs) + 0.5 + 0.02 * len(epochs))
    label_epochs(lower, 10 if width > HALF else 5)
    return figure


def _draw_metric(
    axes: Axes, epochs: Sequence[Epoch], metric: str, bound_name: str, delivered: int | None
) -> None:
    values = np.array([epoch.validation for epoch in epochs])
    dense = sum(epoch.phase == "dense" for epoch in epochs)
    places = np.arange(1, len(epochs) + 1)
    low, high = _limits(epochs)
    axes.set_ylim(low, high)
    axes.set_title(f"validation {plain_label(metric)}", color=MUTED.light)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    for start, end, color, name in (
        (0, dense, MUTED, "dense"),
        (dense, len(epochs), BLUE, "pruning"),
    ):
        if start == end:
            continue
        draw_with_gaps(axes, places[start:end], values[start:end], color.light)
        # Both beside the line between the phases, away from the first values.
        left = name == "pruning"
        axes.annotate(
            name,
            (start + 0.5 if left else end + 0.5, 0),
            xycoords=("data", "axes fraction"),
            xytext=(5 if left else -5, 6),
            textcoords="offset points",
            horizontalalignment="left" if left else "right",
            color=color.light,
        )
    mark_phases(axes, dense, len(epochs))
    _draw_floor(axes, epochs, bound_name)
    back = returns(epochs)
    # A value that is not finite or outside has its triangle at the edge.
    heights = np.clip(np.nan_to_num(values[back], nan=low, posinf=high, neginf=low), low, high)
    axes.plot(
        places[back],
        heights,
        "v",
        color=INK.light,
        markersize=6,
        zorder=5,
        clip_on=False,
    )
    if delivered is not None:
        place, value = delivered + 1, values[delivered]
        axes.plot([place], [value], "o", color=GREEN.light, markersize=7, zorder=4)
        right = place > 0.7 * len(epochs)
        # On the side that the line does not come from.
        near = values[max(0, delivered - len(epochs) // 8) : delivered]
        above = not np.isfinite(near).any() or value >= np.nanmean(near)
        axes.annotate(
            f"delivered {numbers.value(float(value))}",
            (place, value),
            xytext=(0, 9 if above else -18),
            textcoords="offset points",
            horizontalalignment="right" if right else "left",
            color=GREEN.light,
        )


def _draw_floor(axes: Axes, epochs: Sequence[Epoch], bound_name: str) -> None:
    floors = np.array([math.nan if epoch.floor is None else epoch.floor for epoch in epochs])
    known = np.flatnonzero(np.isfinite(floors))
    if not len(known):
        return
    places = np.arange(1, len(epochs) + 1)
    # Half an epoch to both sides, so that the floor of a single epoch is a line too.
    edges = np.repeat(places, 2) + np.tile([-0.5, 0.5], len(places))
    axes.plot(
        edges, np.repeat(floors, 2), color=ORANGE.light, linewidth=1.4, dashes=(5, 3), zorder=3
    )
    axes.annotate(
        f"{bound_name} {numbers.value(float(floors[known[-1]]))}",
        (places[known[-1]], floors[known[-1]]),
        xytext=(0, -14),
        textcoords="offset points",
        horizontalalignment="right",
        color=ORANGE.light,
    )


def _draw_sparsity(axes: Axes, epochs: Sequence[Epoch]) -> None:
    places = np.arange(1, len(epochs) + 1)
    values = np.array([epoch.sparsity for epoch in epochs])
    axes.set_title("sparsity", color=MUTED.light)
    axes.set_ylim(-0.03, 1.18)
    axes.set_yticks([0, 0.5, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    draw_with_gaps(axes, places, values, INK.light)
    # One line with gaps, which takes much less room in the file than a line for each.
    marks = np.repeat([place + 1.0 for place in removals(epochs)], 3)
    heights = np.tile([1.06, 1.15, np.nan], len(marks) // 3)
    axes.plot(marks, heights, color=ORANGE.light, linewidth=1.1, solid_capstyle="butt")
    if values[-1] > 0:
        axes.annotate(
            format_sparsity(float(values[-1])),
            (places[-1], values[-1]),
            xytext=(0, -14),
            textcoords="offset points",
            horizontalalignment="right",
            color=INK.light,
        )


def label_epochs(axes: Axes, most: int) -> None:
    """Label the horizontal axis with round numbers of epochs, at most so many."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=most, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch")


def mark_phases(axes: Axes, dense: int, epochs: int) -> None:
    """Draw a line between the dense training and the pruning, if there are both."""
    if 0 < dense < epochs:
        axes.axvline(dense + 0.5, color=MUTED.light, linewidth=0.8)


def draw_with_gaps(axes: Axes, x: Any, y: Any, color: str, **options: Any) -> None:
    """Draw a line that is interrupted where a value is not finite, and single values as points."""
    y = np.where(np.isfinite(y), y, np.nan)
    axes.plot(x, y, color=color, marker="o" if len(x) <= 12 else "", markersize=3.5, **options)
    finite = np.concatenate([[False], np.isfinite(y), [False]])
    alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    if alone.any():
        axes.plot(np.asarray(x)[alone], y[alone], "o", color=color, markersize=3.5)


def _shown(epochs: Sequence[Epoch]) -> list[float]:
    """Return the values that the vertical axis must show.

    Those of the pruning and the floor, and of the dense training only the second half, because the
    first values would compress the rest.
    """
    dense = [epoch.validation for epoch in epochs if epoch.phase == "dense"]
    shown = dense[len(dense) // 2 :]
    shown += [epoch.validation for epoch in epochs if epoch.phase == "prune"]
    shown += [epoch.floor for epoch in epochs if epoch.floor is not None]
    return [value for value in shown if math.isfinite(value)]


def _limits(epochs: Sequence[Epoch]) -> tuple[float, float]:
    """Return the limits of the vertical axis."""
    shown = _shown(epochs) or [0.0, 1.0]
    low, high = min(shown), max(shown)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return low - 1.6 * margin, high + margin  # room for the names of the phases at the bottom


def _hidden(epochs: Sequence[Epoch]) -> list[float]:
    """Return the values outside the vertical axis."""
    low, high = _limits(epochs)
    values = [epoch.validation for epoch in epochs]
    return [value for value in values if math.isfinite(value) and not low <= value <= high]
