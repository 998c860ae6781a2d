"""Pictures of masks: the first layer as images, and matrices as maps of their density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prunus._utils.digits import format_percent
from prunus.report.figures.drawing import HALF, Drawing
from prunus.report.figures.palette import MUTED, PICTURE
from prunus.report.text import plain_label, short_names

__all__ = ["density_maps", "first_layer_images", "input_map"]

_MOST_IMAGES = 32
_MOST_MAPS = 6
_MOST_CELLS = 96
"""Rows and columns of a density map; larger matrices have several weights in a cell."""

_GAP, _TITLE = 18, 42
"""Space between maps, and above each, in CSS pixels."""

_FAINTEST = 0.3
"""The opacity of the smallest value that is not zero, so that a single weight can be seen."""

_TEXT = ("embed", "wte", "wpe", "attn", "attention")
"""Parts of names in networks whose inputs are no images."""


class _Map(NamedTuple):
    """A map of the density of a matrix.

    Attributes:
        name: The name of the tensor.
        label: Its shape and density.
        values: The fraction of weights that is left in each cell.
        aspect: Rows / columns of the matrix.
    """

    name: str
    label: str
    values: NDArray[Any]
    aspect: float


def first_layer_images(weights: Mapping[str, torch.Tensor]) -> Drawing | None:
    """Return the drawing of the units of the first layer as images of their weights.

    None if the first layer does not read images.

    Args:
        weights: The tensors by name, in the order of the network.
    """
    if (found := _first_images(weights)) is None:
        return None
    name, images = found
    counts = images.ne(0).flatten(1).sum(1)
    chosen = counts.argsort(descending=True, stable=True)[:_MOST_IMAGES].sort().values
    shown = images[chosen].sum(1)  # over the channels of the input
    unit = "filters" if weights[name].dim() > 2 else "units"
    which = f"all {len(images)} {unit}"
    if len(chosen) < len(images):
        which = f"the {len(chosen)} of {len(images)} {unit} with the most weights"
    return Drawing(
        "first-layer",
        "First layer",
        f"Images of the weights of {which} in {name}: removed weights are empty.",
        lambda width: _draw_images(shown.numpy(), width),
        f"{name}: {which}. Blue is positive, orange negative; removed weights are empty.",
    )


def input_map(weights: Mapping[str, torch.Tensor]) -> Drawing | None:
    """Return the drawing of how many weights read each pixel; None without a linear first layer."""
    if (found := _first_images(weights)) is None or weights[found[0]].dim() > 2:
        return None
    name, images = found
    counts = images.ne(0).sum((0, 1)).numpy()
    read, pixels = int((counts > 0).sum()), counts.size
    return Drawing(
        "inputs",
        "Inputs that are read",
        f"Map of the {pixels} input pixels, of which {read} are read by at least one weight of "
        f"{name}, and at most by {counts.max()}.",
        lambda width: _draw_single(counts, width),
        f"{read} of {pixels} pixels are read; the strongest colour stands for {counts.max()} "
        f"weights of {name}.",
    )


def density_maps(weights: Mapping[str, torch.Tensor]) -> Drawing | None:
    """Return the drawing of the largest matrices as maps of their density; None without one."""
    matrices = {name: w for name, w in weights.items() if w.dim() >= 2 and w.numel()}
    largest = sorted(matrices, key=lambda name: -matrices[name].numel())[:_MOST_MAPS]
    if not largest:
        return None
    shown = [name for name in matrices if name in largest]  # in the order of the network
    maps = [
        _density_map(short, matrices[name])
        for name, short in zip(shown, short_names(shown), strict=True)
    ]
    which = "Each" if len(maps) == len(matrices) else f"The {len(maps)} largest"
    alt = "Maps of where weights are left: " + "; ".join(
        f"{name}, {map_.label}" for name, map_ in zip(shown, maps, strict=True)
    )
    return Drawing(
        "masks",
        "Masks",
        alt,
        lambda width: _draw_maps(maps, width),
        f"{which} of the matrices, rows from the top. The stronger the colour, the larger the "
        "fraction of weights that is left; empty places have none.",
    )


def _first_images(weights: Mapping[str, torch.Tensor]) -> tuple[str, torch.Tensor] | None:
    """Return name and images (units, channels, height, width) of the first layer."""
    if any(part in name.lower() for name in weights for part in _TEXT):
        return None
    name = next((name for name, weight in weights.items() if weight.dim() >= 2), None)
    if name is None or not weights[name].numel():
        return None
    weight = weights[name].detach().float()
    if weight.dim() == 4:
        return (name, weight) if min(weight.shape[2:]) > 1 else None
    if weight.dim() != 2:
        return None
    for channels in (1, 3):
        side = math.isqrt(weight.shape[1] // channels)
        if side >= 4 and channels * side * side == weight.shape[1]:
            return name, weight.reshape(-1, channels, side, side)
    return None


def _density_map(name: str, weight: torch.Tensor) -> _Map:
    """Return the map of a tensor, whose dimensions after the first are columns."""
    mask = weight.detach().ne(0).flatten(1).float()
    rows, columns = mask.shape
    cells = (min(_MOST_CELLS, rows), min(_MOST_CELLS, columns))
    pooled = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], cells)[0, 0]
    density = int(torch.count_nonzero(mask)) / mask.numel()
    shape = "×".join(map(str, weight.shape))
    label = f"{shape}, {format_percent(density)}"
    return _Map(name, label, pooled.numpy(), rows / columns)


def _pixels(values: NDArray[Any]) -> NDArray[Any]:
    """Return the colours and opacities of values, whose largest is opaque."""
    largest = np.abs(values).max() or 1.0
    opacity = np.abs(values) / largest
    opacity = np.where(values == 0, 0, _FAINTEST + (1 - _FAINTEST) * opacity)
    colors = np.where(values[..., None] < 0, PICTURE["negative"], PICTURE["positive"])
    return np.concatenate([colors, opacity[..., None]], axis=-1)


def _show(axes: Axes, values: NDArray[Any]) -> None:
    axes.imshow(_pixels(values), interpolation="none", aspect="auto")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(MUTED.light)
        spine.set_linewidth(0.5)


def _draw_single(values: NDArray[Any], width: int) -> Figure:
    side = min(width, 320)
    figure = Figure(figsize=(side / 72, side / 72 * values.shape[0] / values.shape[1]))
    _show(figure.add_axes((0.01, 0.01, 0.98, 0.98)), values)
    return figure


def _draw_images(images: NDArray[Any], width: int) -> Figure:
    columns = min(len(images), 8 if width >= HALF else 6)
    rows = math.ceil(len(images) / columns)
    gap = 0.12
    aspect = images.shape[1] / images.shape[2]
    figure = Figure(figsize=(width / 72, width / 72 * rows / columns * aspect))
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        _show(
            figure.add_axes(
                (
                    (column + gap / 2) / columns,
                    1 - (row + 1 - gap / 2) / rows,
                    (1 - gap) / columns,
                    (1 - gap) / rows,
                )
            ),
            image,
        )
    return figure


def _draw_maps(maps: Sequence[_Map], width: int) -> Figure:
    columns = min(len(maps), 3 if width >= HALF else 2)
    rows = [maps[start : start + columns] for start in range(0, len(maps), columns)]
    cell = (width - _GAP * (columns - 1)) / columns
    boxes = [[_size_in(map_.aspect, cell) for map_ in row] for row in rows]
    heights = [max(height for _, height in row) for row in boxes]
    total = sum(heights) + len(rows) * _TITLE + (len(rows) - 1) * _GAP
    figure = Figure(figsize=(width / 72, total / 72))
    top = total
    for row, sizes, height in zip(rows, boxes, heights, strict=True):
        for column, (map_, (across, down)) in enumerate(zip(row, sizes, strict=True)):
            left, bottom = column * (cell + _GAP), top - _TITLE - down
            box = (left / width, bottom / total, across / width, down / total)
            axes = figure.add_axes(box)
            _show(axes, map_.values)
            title = f"{plain_label(map_.name, int(cell / 7.2))}\n{map_.label}"
            axes.set_title(title, fontsize=12, pad=5)
        top -= height + _TITLE + _GAP
    return figure


def _size_in(aspect: float, cell: float) -> tuple[float, float]:
    """Return width and height of a map that is as wide as a cell, or as high as 1.4 times that.

    Its shape is that of the matrix, except that a very flat or narrow one stays visible.

    Args:
        aspect: Rows / columns of the matrix.
        cell: The width of a cell.
    """
    aspect = min(max(aspect, 1 / 8), 8.0)
    return (cell, cell * aspect) if aspect <= 1.4 else (1.4 * cell / aspect, 1.4 * cell)
