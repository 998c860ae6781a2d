"""Latencies that ``prunus bench`` measured."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunus.bench import BenchReport, BenchRow
from prunus.report import numbers
from prunus.report.figures.drawing import HALF, Drawing
from prunus.report.figures.palette import BLUE, INK, MUTED
from prunus.report.text import plain_label

__all__ = ["latencies_figure"]


def latencies_figure(report: BenchReport) -> Drawing:
    """Return the drawing of the latencies, of at least one batch."""
    alt = "Chart of the time of a batch: " + "; ".join(
        f"{_heading(row)}: "
        + ", ".join(
            f"{name} {numbers.milliseconds(times['median_ms'])}"
            for name, times in row.times.items()
        )
        for row in report.rows
    )
    disturbed = sorted({name for row in report.rows for name in row.disturbed})
    caption = "Median time of a batch, and a line between the quartiles."
    if disturbed:
        caption += f" Other processes disturbed the timings of: {', '.join(disturbed)}."
    return Drawing("latency", "Latency", alt, lambda width: _draw(report, width), caption)


def _heading(row: BenchRow) -> str:
    return f"batch of {row.batch}, {row.threads} thread{'s' * (row.threads > 1)}"


def _draw(report: BenchReport, width: int) -> Figure:
    heights = [len(row.times) for row in report.rows]
    total = sum(30 * height + 46 for height in heights)
    figure = Figure(figsize=(width / 72, total / 72), layout="constrained")
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for axes, row in zip(grid.flat, report.rows, strict=True):
        _draw_row(axes, row, width)
    return figure


def _draw_row(axes: Axes, row: BenchRow, width: int) -> None:
    axes.set_title(_heading(row))
    largest = max(times["quartile_3_ms"] for times in row.times.values())
    for place, (name, times) in enumerate(row.times.items()):
        color = MUTED if name == "dense" else BLUE
        ends = (times["quartile_1_ms"], times["quartile_3_ms"])
        axes.hlines(place, *ends, color=color.light, linewidth=5, alpha=0.35)
        axes.plot([times["median_ms"]], [place], "o", color=color.light, markersize=6)
        factor = "" if name == "dense" else f", {row.times_faster[name]:.2f}×"
        axes.annotate(
            f"{numbers.milliseconds(times['median_ms'])}{factor}",
            (ends[1], place),
            xytext=(8, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=INK.light,
        )
    axes.set_yticks(range(len(row.times)), [plain_label(name, 18) for name in row.times])
    axes.set_ylim(len(row.times) - 0.4, -0.6)
    # Room for the labels on the right.
    axes.set_xlim(0, largest * (1.35 if width >= HALF else 1.9))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.axvline(0, color=MUTED.light, linewidth=0.8)
