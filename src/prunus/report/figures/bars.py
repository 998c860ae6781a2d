"""Horizontal bars with names and values as labels, which several figures consist of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunus.report.figures.palette import GRID, INK, MUTED
from prunus.report.text import plain_label

__all__ = ["Bar", "draw_bars"]

_ROW = 40
"""The height of a bar with its distance to the next, in CSS pixels."""


class Bar(NamedTuple):
    """A bar.

    Attributes:
        name: Its name.
        value: Its length.
        label: The text after it.
        color: Its colour.
    """

    name: str
    value: float
    label: str
    color: str


def draw_bars(bars: Sequence[Bar], width: int, *, full: float | None = None) -> Figure:
    """Draw bars, with each name above its bar so that long names have room.

    Args:
        bars: At least one.
        width: The width in CSS pixels.
        full: The length of the pale bar behind each, such as 1 for fractions. Default None:
            none, and the longest bar fills the width.
    """
    rows = len(bars)
    figure = Figure(figsize=(width / 72, (rows * _ROW + 6) / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    longest = full or max(bar.value for bar in bars) or 1.0
    for place, bar in enumerate(bars):
        if full:
            axes.barh(place, full, height=0.22, color=GRID.light)
        axes.barh(place, bar.value, height=0.22, color=bar.color)
        # What the label leaves of the width, at about 7 pixels for each character.
        room = max(12, width // 7 - len(bar.label) - 2)
        _label(axes, 0, place, plain_label(bar.name, room), left=True)
        _label(axes, longest, place, bar.label, left=False)
    axes.set_ylim(rows - 0.6, -0.85)
    axes.set_xlim(0, longest)
    axes.axis("off")
    return figure


def _label(axes: Axes, x: float, y: float, text: str, *, left: bool) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 9),
        textcoords="offset points",
        horizontalalignment="left" if left else "right",
        color=INK.light if left else MUTED.light,
    )
