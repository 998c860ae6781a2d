"""Sizes of a network on disk beside the lower bound of any file."""

from __future__ import annotations

from collections.abc import Mapping

from prunus._utils.sizes import compare_sizes
from prunus.report import numbers
from prunus.report.figures.bars import Bar, draw_bars
from prunus.report.figures.drawing import Drawing
from prunus.report.figures.palette import BLUE, GREEN, MUTED

__all__ = ["sizes_figure"]


def sizes_figure(dense: int, files: Mapping[str, float], bound: float) -> Drawing:
    """Return the drawing of the sizes.

    Args:
        dense: The size of the dense network's file.
        files: The sizes of the other files, by description.
        bound: A lower bound of the size of the tensors in any file; 0 if there is none.
    """
    bars = [Bar("dense network", dense, numbers.file_size(dense), MUTED.light)]
    rows = {**files, "lower bound of any file": bound} if bound else files
    for name, size in rows.items():
        compared = compare_sizes(size, dense)
        color = GREEN if name not in files else BLUE
        bars.append(Bar(name, size, f"{numbers.file_size(size)}, {compared}", color.light))
    alt = "Bar chart of sizes: " + "; ".join(f"{bar.name} {bar.label}" for bar in bars)
    return Drawing(
        "sizes",
        "Size on disk",
        alt,
        lambda width: draw_bars(bars, width),
        "Bytes of the files. The lower bound holds if the zeros are at random positions."
        if bound
        else "Bytes of the files.",
    )
