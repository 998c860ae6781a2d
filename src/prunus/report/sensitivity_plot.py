"""The heat map of sensitivities: tensors by sparsities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus._utils.checks import raise_problems, type_problem
from prunus._utils.extras import missing_extra
from prunus.errors import ArgumentError
from prunus.sensitivity import Sensitivities

try:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    from prunus.report.figures.drawing import styled
    from prunus.report.figures.palette import INK, PICTURE
    from prunus.report.text import plain_label, short_names
except ImportError as error:
    raise missing_extra("prunus.report", "report", error) from error

__all__ = ["plot_sensitivity"]

_ROW, _COLUMN, _MARGIN = 22, 64, 90
"""The height of a row, the width of a column, and the room for labels, in points."""

_LONGEST_NAME = 40


def plot_sensitivity(found: Sensitivities, *, metric: str = "metric") -> Figure:
    """Plot the change of the metric by tensor and sparsity as a heat map.

    The number in a cell is the metric of the model in which only this tensor is sparse, minus that
    of the whole model. The darker a cell, the larger the change; orange where it falls, blue where
    it rises. A change that is not finite has no colour.

    Args:
        found: What :func:`prunus.sensitivity` returned.
        metric: The name of the metric, for the title.

    Returns:
        A figure of matplotlib, which ``figure.savefig(path)`` writes.

    Raises:
        ArgumentError: ``found`` has no record.
        ArgumentTypeError: ``found`` is something else.
        MissingExtraError: The extra "report" is not installed.

    Example:
        >>> from prunus.sensitivity import Sensitivity
        >>> records = (Sensitivity("a", 10, 0.5, 0.9, -0.05), Sensitivity("b", 10, 0.5, 0.95, 0.0))
        >>> figure = plot_sensitivity(Sensitivities(0.95, records), metric="accuracy")
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['−0.050', '0.000']
    """
    raise_problems(
        type_problem(
            "found", found, Sensitivities, "Sensitivities", fix="prunus.sensitivity(model, ...)"
        )
    )
    if not found.records:
        raise ArgumentError("found must have a record, but has none: pass at least one sparsity")
    names = list(dict.fromkeys(record.name for record in found.records))
    sparsities = sorted({record.sparsity for record in found.records})
    changes = np.full((len(names), len(sparsities)), math.nan)
    for record in found.records:
        changes[names.index(record.name), sparsities.index(record.sparsity)] = record.change
    finite = changes[np.isfinite(changes)]
    largest = float(np.abs(finite).max()) if len(finite) else 0.0
    with styled():
        return _draw(names, sparsities, changes, largest, metric)


def _draw(
    names: list[str], sparsities: list[float], changes: NDArray[Any], largest: float, metric: str
) -> Figure:
    size = (
        (_COLUMN * len(sparsities) + 3 * _MARGIN) / 72,
        (_ROW * len(names) + _MARGIN) / 72,
    )
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    colors = [PICTURE["negative"], (1.0, 1.0, 1.0), PICTURE["positive"]]
    scale = LinearSegmentedColormap.from_list("change", colors)
    limit = largest or 1.0
    axes.imshow(changes, cmap=scale, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_title(f"change of the {plain_label(metric)} if one tensor is sparse")
    axes.set_xticks(range(len(sparsities)), [f"{sparsity:.4g}" for sparsity in sparsities])
    axes.set_xlabel("sparsity of the tensor")
    labels = [plain_label(name, _LONGEST_NAME) for name in short_names(names)]
    axes.set_yticks(range(len(names)), labels)
    axes.grid(visible=False)
    # Two significant digits of the largest change.
    decimals = max(0, 1 - math.floor(math.log10(largest))) if largest else 3
    for (row, column), change in np.ndenumerate(changes):
        if not math.isfinite(change):
            text = "–"
        else:
            text = f"{change:+.{decimals}f}".replace("-", "−")
            if not round(change, decimals):
                text = text[1:]
        axes.text(column, row, text, ha="center", va="center", color=INK.light, fontsize=11)
    return figure
