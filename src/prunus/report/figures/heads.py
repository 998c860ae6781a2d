"""Densities of attention heads: a grid of layers and heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prunus._utils.digits import format_percent
from prunus.report.figures.drawing import Drawing
from prunus.report.figures.palette import INK, PICTURE
from prunus.report.text import plain_label, short_names

__all__ = ["head_densities", "heads_figure"]

_COUNTS = (
    *("num_attention_heads", "n_head", "num_heads", "n_heads"),
    *("encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads"),
)
"""The names of the number of heads in the settings of common networks."""

_PROJECTION = re.compile(
    r"(?P<layer>.*(?:attn|attention).*?)\.?(?P<part>c_attn|in_proj|[qkv]_proj|c_proj|out_proj|o_proj)"
    r"[._]weight$"
)
_CONV1D = ("c_attn", "c_proj")
"""Projections that GPT-2 stores with their inputs as rows."""

_PACKED = ("c_attn", "in_proj")
"""Projections to queries, keys and values at once."""

_OUTPUT = ("c_proj", "out_proj", "o_proj")
"""Projections whose inputs belong to the heads."""


def heads_figure(
    weights: Mapping[str, torch.Tensor], architecture: Mapping[str, Any]
) -> Drawing | None:
    """Return the drawing of the density of each attention head; None without attention.

    Args:
        weights: The tensors by name.
        architecture: The settings of the network, with its number of heads.
    """
    densities = head_densities(weights, architecture)
    if not densities:
        return None
    values = np.array(list(densities.values()))
    dead = int((values == 0).sum())
    alt = (
        f"Grid of the fraction of non-zero weights of {values.shape[1]} attention heads in "
        f"{len(densities)} layers, from {format_percent(float(values.min()))} to "
        f"{format_percent(float(values.max()))}; {dead} heads have no weight left."
    )
    return Drawing(
        "heads",
        "Attention heads",
        alt,
        lambda width: _draw(list(densities), values, width),
        "Non-zero / all weights of the projections that belong to a head: queries, keys, values "
        "and output.",
    )


def head_densities(
    weights: Mapping[str, torch.Tensor], architecture: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Return the density of each head, by the name of the attention layer.

    Empty if the network states no number of heads, or several.

    Example:
        >>> weight = torch.eye(4)
        >>> weight[2:] = 0
        >>> head_densities({"h.0.attn.q_proj.weight": weight}, {"num_heads": 2})
        {'h.0.attn': [0.25, 0.0]}
    """
    counts = {architecture[name] for name in _COUNTS if isinstance(architecture.get(name), int)}
    if len(counts) != 1 or min(counts) < 1:
        return {}
    heads = counts.pop()
    layers: dict[str, list[torch.Tensor]] = {}
    for name, weight in weights.items():
        match = _PROJECTION.match(name)
        if match is None or weight.dim() != 2:
            continue
        masks = _by_head(weight, match["part"], heads)
        if masks is not None:
            layers.setdefault(match["layer"], []).append(masks)
    return {
        layer: (torch.cat(masks, dim=1).float().mean(1)).tolist() for layer, masks in layers.items()
    }


def _by_head(weight: torch.Tensor, part: str, heads: int) -> torch.Tensor | None:
    """Return the mask of a projection, a row for each head; None if it does not divide evenly."""
    mask = weight.detach().ne(0)
    if part in _CONV1D:
        mask = mask.T
    if part in _OUTPUT:
        mask = mask.T
    packed = 3 if part in _PACKED else 1
    if mask.shape[0] % (packed * heads):
        return None
    return mask.reshape(packed, heads, -1).transpose(0, 1).reshape(heads, -1)


def _draw(layers: list[str], values: NDArray[Any], width: int) -> Figure:
    rows, columns = values.shape
    figure = Figure(figsize=(width / 72, (40 + 36 * rows) / 72), layout="constrained")
    axes = figure.subplots()
    largest = values.max() or 1.0
    pixels = np.empty((rows, columns, 4))
    pixels[..., :3] = PICTURE["positive"]
    pixels[..., 3] = 0.6 * values / largest
    axes.imshow(pixels, interpolation="none", aspect="auto")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(rows), [plain_label(name, 16) for name in short_names(layers)])
    axes.set_xticks(range(columns), [str(head + 1) for head in range(columns)])
    axes.xaxis.tick_top()
    if columns * 48 <= width - 110:
        for row in range(rows):
            for column in range(columns):
                axes.text(
                    column,
                    row,
                    format_percent(float(values[row, column])),
                    horizontalalignment="center",
                    verticalalignment="center",
                    color=INK.light,
                )
    return figure
