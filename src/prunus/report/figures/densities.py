"""Densities by layer type and by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from prunus._utils.digits import format_percent
from prunus.export.inspection import TensorDensity
from prunus.report.figures.bars import Bar, draw_bars
from prunus.report.figures.drawing import Drawing
from prunus.report.figures.palette import BLUE

__all__ = ["tensor_densities_figure", "type_densities_figure"]

_DIAMETERS = (4.0, 6.0, 8.0, 10.0)
"""Of the points, in CSS pixels: for tensors of up to a quarter of the largest, and so on."""

_MOST_POINTS = 2000

_MOST_BARS = 14
"""The number of tensors up to which each has a bar; more are points in one diagram."""


def type_densities_figure(layer_types: Mapping[str, tuple[int, int]]) -> Drawing:
    """Return the drawing of the density of each layer type.

    Args:
        layer_types: Prunable and non-zero weights by layer type; at least one.
    """
    bars = [
        Bar(
            name,
            nonzero / prunable if prunable else 0.0,
            f"{format_percent(nonzero / prunable if prunable else 0.0)} of {prunable:,}",
            BLUE.light,
        )
        for name, (prunable, nonzero) in layer_types.items()
    ]
    alt = "Bar chart of the fraction of non-zero weights by layer type: " + "; ".join(
        f"{bar.name} {bar.label}" for bar in bars
    )
    return Drawing(
        "density-by-type",
        "Density by layer type",
        alt,
        lambda width: draw_bars(bars, width, full=1.0),
        "Non-zero / prunable weights.",
    )


def tensor_densities_figure(tensors: Sequence[TensorDensity]) -> Drawing:
    """Return the drawing of the density of each tensor; of at least one."""
    densest = max(tensors, key=lambda tensor: tensor.density)
    sparsest = min(tensors, key=lambda tensor: tensor.density)
    alt = (
        f"Chart of the fraction of non-zero elements of {len(tensors)} tensors, from "
        f"{format_percent(sparsest.density)} in {sparsest.name} to "
        f"{format_percent(densest.density)} in {densest.name}."
    )
    if len(tensors) <= _MOST_BARS:
        return Drawing(
            "density-by-tensor",
            "Density by tensor",
            alt,
            lambda width: draw_bars([_bar(tensor) for tensor in tensors], width, full=1.0),
            "Non-zero / all elements of each tensor with at least two dimensions.",
        )
    shown = tensors
    which = "each tensor"
    if len(tensors) > _MOST_POINTS:
        smallest = sorted(tensor.numel for tensor in tensors)[-_MOST_POINTS]
        shown = [tensor for tensor in tensors if tensor.numel >= smallest][:_MOST_POINTS]
        which = f"the {_MOST_POINTS:,} largest of {len(tensors):,} tensors"
    return Drawing(
        "density-by-tensor",
        "Density by tensor",
        alt,
        lambda width: _draw_points(shown, width),
        f"Non-zero / all elements of {which} with at least two dimensions, in the order of the "
        "network; the larger a point, the larger the tensor.",
    )


def _bar(tensor: TensorDensity) -> Bar:
    label = f"{format_percent(tensor.density)} of {tensor.numel:,}"
    return Bar(tensor.name, tensor.density, label, BLUE.light)


def _draw_points(tensors: Sequence[TensorDensity], width: int) -> Figure:
    figure = Figure(figsize=(width / 72, 260 / 72), layout="constrained")
    axes = figure.subplots()
    densities = np.array([tensor.density for tensor in tensors])
    sizes = np.array([tensor.numel for tensor in tensors], dtype=float)
    # A few classes, because points of one size share a symbol in the file.
    classes = np.ceil(len(_DIAMETERS) * sizes / max(sizes.max(), 1)).astype(int) - 1
    # Zero has no logarithm: such tensors are drawn at the bottom.
    positive = densities[densities > 0]
    lowest = positive.min() / 2 if len(positive) else 0.5
    for number, diameter in enumerate(_DIAMETERS):
        chosen = np.flatnonzero(np.maximum(classes, 0) == number)
        axes.plot(
            chosen + 1,
            np.maximum(densities[chosen], lowest),
            "o",
            color=BLUE.light,
            alpha=0.75,
            markersize=diameter,
            markeredgewidth=0,
        )
    axes.set_yscale("log")
    axes.set_ylim(lowest / 1.3, 1.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_percent(min(y, 1))))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel("tensor")
    return figure
