"""The results of a study: metric against sparsity, or by method where there is one ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from prunus.report.figures.drawing import FULL, HALF, Drawing
from prunus.report.figures.palette import INK, MUTED, SERIES
from prunus.report.text import plain_label
from prunus.studies import StudyTable, TableRow
from prunus.studies.cells import format_ratio
from prunus.studies.statistics import mean_and_deviation
from prunus.studies.tables import format_sparsity

__all__ = ["spread_apart", "study_curves"]

_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
"""The styles of lines, for more methods than there are colours."""


@dataclass(frozen=True)
class _Line:
    """The results of a method over the ratios.

    Attributes:
        label: The label of the method.
        rows: Its rows, with increasing ratio.
        color: Its colour.
        dashes: Its style.
    """

    label: str
    rows: Sequence[TableRow]
    color: str
    dashes: object

    @property
    def means(self) -> NDArray[np.float64]:
        """The mean of the metric at each ratio."""
        return np.array([mean_and_deviation(row.outcome.values)[0] for row in self.rows])

    @property
    def deviations(self) -> NDArray[np.float64]:
        """The standard deviation at each ratio; 0 where there is one seed."""
        return np.array([mean_and_deviation(row.outcome.values)[1] or 0.0 for row in self.rows])


def study_curves(table: StudyTable) -> Drawing:
    """Return the drawing of a study's results, of at least one row."""
    ratios = sorted({row.ratio for row in table.rows})
    results = [
        f"{row.method} at ratio {format_ratio(row.ratio)} {table.spread(row.outcome.values)}"
        for row in table.rows
    ]
    alt = (
        f"Chart of the test {table.metric}, mean ± standard deviation over the seeds: dense "
        f"{table.spread(table.dense)}; {'; '.join(results)}"
    )
    better = "larger" if table.maximized else "smaller"
    if len(ratios) == 1:
        return Drawing(
            "methods",
            f"Test {table.metric} by method",
            alt,
            lambda width: _draw_methods(table, width),
            "Mean, standard deviation over the seeds, and a small point for each seed; "
            f"{better} is better.",
            wide=FULL,
        )
    return Drawing(
        "study",
        f"Test {table.metric} against sparsity",
        alt,
        lambda width: _draw_curves(table, width),
        f"Mean over the seeds, and their standard deviation as a band; {better} is better. The "
        "axis of the sparsity is logarithmic in the weights that are left.",
        wide=FULL,
    )


def _lines(table: StudyTable) -> list[_Line]:
    labels = list(dict.fromkeys(row.method for row in table.rows))
    return [
        _Line(
            label,
            sorted((row for row in table.rows if row.method == label), key=lambda row: row.ratio),
            SERIES[number % len(SERIES)].light,
            _DASHES[number // len(SERIES) % len(_DASHES)],
        )
        for number, label in enumerate(labels)
    ]


def _draw_curves(table: StudyTable, width: int) -> Figure:
    figure = Figure(figsize=(width / 72, (400 if width > HALF else 340) / 72), layout="constrained")
    axes = figure.subplots()
    lines = _lines(table)
    axes.set_title(f"test {plain_label(table.metric)}", color=MUTED.light)
    for line in lines:
        densities = np.array([1 - row.outcome.sparsity for row in line.rows])
        low, high = line.means - line.deviations, line.means + line.deviations
        axes.fill_between(densities, low, high, color=line.color, alpha=0.14, linewidth=0)
        axes.plot(
            densities,
            line.means,
            color=line.color,
            linestyle=line.dashes,
            marker="o",
            markersize=4.5,
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    _label_sparsities(axes, table, width)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlabel("sparsity")
    _draw_dense(axes, table)
    _label_lines(figure, axes, lines, width)
    return figure


def _label_sparsities(axes: Axes, table: StudyTable, width: int) -> None:
    """Label the horizontal axis with the mean sparsity at each ratio, where there is room."""
    ratios = sorted({row.ratio for row in table.rows})
    places = []
    for ratio in ratios:
        sparsities = [row.outcome.sparsity for row in table.rows if row.ratio == ratio]
        places.append(1 - float(np.mean(sparsities)))
    least = 0.16 if width <= HALF else 0.06
    logs = np.log(np.maximum(places, 1e-12))
    span = logs.max() - logs.min() or 1.0
    chosen: list[int] = []
    for place in range(len(places)):
        if not chosen or abs(logs[place] - logs[chosen[-1]]) >= least * span:
            chosen.append(place)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(
        [places[place] for place in chosen],
        [format_sparsity(1 - places[place]) for place in chosen],
    )


def _draw_dense(axes: Axes, table: StudyTable) -> None:
    mean, deviation = mean_and_deviation(table.dense)
    axes.axhline(mean, color=MUTED.light, linewidth=1, zorder=1)
    if deviation:
        axes.axhspan(
            mean - deviation, mean + deviation, color=MUTED.light, alpha=0.09, linewidth=0, zorder=0
        )
    axes.annotate(
        "dense",
        (0, mean),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        color=MUTED.light,
    )


def _label_lines(figure: Figure, axes: Axes, lines: Sequence[_Line], width: int) -> None:
    """Write each label at the right end of its line, at a distance from the next."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    room = 0.055 if width > HALF else 0.065
    # Label positions as fractions of the axis, from the top, pushed apart where they are close.
    order = sorted(lines, key=lambda line: -line.means[-1])
    wanted = [(line.means[-1] - low) / (high - low) for line in order]
    places = spread_apart(wanted, room)
    for line, place in zip(order, places, strict=True):
        axes.text(
            1.012,
            place,
            plain_label(line.label, 24 if width > HALF else 12),
            transform=axes.transAxes,
            verticalalignment="center",
            color=line.color,
        )


def spread_apart(places: Sequence[float], least: float) -> list[float]:
    """Return descending places moved as little as needed to be at least a distance apart.

    Args:
        places: The places, in descending order.
        least: The least distance.

    Example:
        >>> spread_apart([0.5, 0.5, 0.1], 0.2)
        [0.6, 0.4, 0.1]
    """
    groups: list[tuple[float, int]] = []  # the centre and the number of each group of neighbours
    for place in places:
        centre, number = place, 1
        while groups:
            above, others = groups[-1]
            if above - centre >= least * (number + others) / 2:
                break
            groups.pop()
            centre = (above * others + centre * number) / (others + number)
            number += others
        groups.append((centre, number))
    return [
        centre + least * ((number - 1) / 2 - position)
        for centre, number in groups
        for position in range(number)
    ]


def _draw_methods(table: StudyTable, width: int) -> Figure:
    lines = _lines(table)
    figure = Figure(figsize=(width / 72, (60 + 34 * len(lines)) / 72), layout="constrained")
    axes = figure.subplots()
    dense, deviation = mean_and_deviation(table.dense)
    axes.axvline(dense, color=MUTED.light, linewidth=1, zorder=1)
    if deviation:
        axes.axvspan(
            dense - deviation, dense + deviation, color=MUTED.light, alpha=0.12, linewidth=0
        )
    axes.annotate(
        "dense",
        (dense, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        horizontalalignment="center",
        color=MUTED.light,
    )
    for place, line in enumerate(lines):
        mean, spread = float(line.means[0]), float(line.deviations[0])
        color = SERIES[0].light
        axes.hlines(place, mean - spread, mean + spread, color=color, linewidth=5, alpha=0.35)
        values = line.rows[0].outcome.values
        axes.plot(values, [place] * len(values), "o", color=INK.light, markersize=2.5, alpha=0.7)
        axes.plot([mean], [place], "o", color=color, markersize=6)
    axes.set_yticks(
        range(len(lines)),
        [plain_label(line.label, 28 if width > HALF else 13) for line in lines],
    )
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if width > HALF else 4))
    axes.set_xlabel(f"test {plain_label(table.metric)}")
    return figure
