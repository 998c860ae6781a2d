"""Pictures of the page on concepts, drawn from the definitions and from the quickstart's training.

Run from the repository's root: ``make figures``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

import prunus
from prunus.report.figures.drawing import HALF, Drawing, save_drawing
from prunus.report.figures.palette import BLUE, GOLD, GREEN, MUTED, ORANGE

DOCS = Path(__file__).resolve().parent

_KEPT = 0.1
"""The fraction of the weights that the picture of the scores keeps."""


_EVERY = 16
"""One of so many weights is shown as a point."""


def main(folder: Path = DOCS / "pictures") -> None:
    """Draw the pictures.

    Args:
        folder: The folder of the pictures.
    """
    names: dict[str, Any] = {}
    dense, sparse, *_ = re.findall(
        r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text(), flags=re.DOTALL
    )
    exec(dense, names)
    scores = scores_picture(*first_layer(names))
    exec(sparse, names)
    for drawing in (coefficients_picture(), scores, floor_picture(names["pruner"])):
        save_drawing(drawing, folder, "concepts", suffixes=("svg",))


def coefficients_picture() -> Drawing:
    """Return the drawing of the irrelevance coefficients by the magnitude of the gradient."""
    gradients = torch.linspace(0, 2, 201)
    lines: Mapping[str, tuple[prunus.Coefficient, str]] = {
        "constant: L2": (prunus.ConstantRelevance(), MUTED.light),
        "exponential, α = 1: the paper": (prunus.ExponentialRelevance(alpha=1.0), BLUE.light),
        "linear, α = 1: LOBSTER": (prunus.LinearRelevance(alpha=1.0), GOLD.light),
        "exponential, α = 0.2: the default": (
            prunus.ExponentialRelevance(alpha=0.2),
            ORANGE.light,
        ),
    }

    def draw(axes: Axes) -> None:
        for label, (coefficient, color) in lines.items():
            axes.plot(gradients, coefficient(gradients), color=color, label=label)
        axes.set_xlabel("|∂L/∂w|; of the default in multiples of the tensor's mean")
        axes.set_title("irrelevance coefficient", color=MUTED.light)
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94))

    alt = "Chart of the irrelevance coefficients by the magnitude of the gradient."
    return _drawing("coefficients", alt, draw)


def first_layer(names: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of the first layer, and the mean squares of their gradients."""
    model = names["model"]
    weight = model[0].weight
    squares = torch.zeros_like(weight)
    batches = names["train"].split(32)
    for batch in batches:
        loss = torch.nn.functional.cross_entropy(
            model(names["images"][batch]), names["labels"][batch]
        )
        (gradient,) = torch.autograd.grad(loss, weight)
        squares += gradient.square() / len(batches)
    return weight.detach().clone(), squares


def scores_picture(weight: torch.Tensor, fisher: torch.Tensor) -> Drawing:
    """Return the drawing of weights by magnitude and mean square gradient.

    Args:
        weight: The weights.
        fisher: The mean squares of their gradients.
    """
    used = fisher > 0  # pixels that are always black have no gradient
    magnitude, square = weight[used].abs().numpy(), fisher[used].numpy()
    score = magnitude**2 * square
    by_magnitude, by_score = (np.quantile(x, 1 - _KEPT) for x in (magnitude, score))

    def draw(axes: Axes) -> None:
        kept = score > by_score
        for chosen, color, label in (
            (~kept, MUTED.light, "removed by w²·F"),
            (kept, ORANGE.light, "kept by w²·F"),
        ):
            axes.scatter(
                magnitude[chosen][::16],
                square[chosen][::16],
                s=4,
                color=color,
                alpha=0.5,
                label=label,
            )
        axes.axvline(by_magnitude, color=BLUE.light, label="threshold of |w|")
        line = np.geomspace(1e-3, 1, 50)
        axes.plot(line, by_score / line**2, color=ORANGE.light, label="threshold of w²·F")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1e-3, 0.5)
        axes.set_ylim(1e-10, square.max() * 2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("|w|")
        axes.set_title("F, the mean of (∂L/∂w)²", color=MUTED.light)
        axes.legend(
            loc="lower left", markerscale=3, frameon=True, framealpha=0.85, edgecolor="none"
        )

    alt = (
        "Scatter chart of the weights of a layer by magnitude and mean square gradient, with the "
        f"thresholds of |w| and w²·F that each keep {_KEPT:.0%} of them."
    )
    return _drawing("scores", alt, draw)


def floor_picture(pruner: prunus.Pruner) -> Drawing:
    """Return the drawing of a training: metric and sparsity of each validation."""
    history = list(pruner.history)
    epochs = np.arange(1, len(history) + 1)
    metric = np.array([validation.metric for validation in history], dtype=float)
    sparsity = np.array([validation.sparsity for validation in history])
    met = np.array([validation.met for validation in history])
    delivered = max(place for place, validation in enumerate(history) if validation.best)

    def draw_all(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        upper.axhline(pruner.floor or 0.0, color=ORANGE.light, linewidth=1.2, label="floor")
        upper.plot(epochs, metric, color=BLUE.light, linewidth=0.8)
        upper.plot(epochs[met], metric[met], "o", color=BLUE.light, markersize=4, label="met it")
        upper.plot(
            epochs[~met], metric[~met], "o", color=BLUE.light, markersize=4, markerfacecolor="white"
        )
        upper.plot(
            epochs[delivered], metric[delivered], "s", color=GREEN.light, markersize=8,
            label="delivered",
        )  # fmt: skip
        upper.set_title("validation accuracy", color=MUTED.light)
        upper.legend(loc="upper right", ncols=3)
        lower.plot(epochs, sparsity, color=BLUE.light)
        lower.plot(epochs[delivered], sparsity[delivered], "s", color=GREEN.light, markersize=8)
        lower.set_title("sparsity", color=MUTED.light)
        lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        lower.set_xlabel("epoch")

    alt = (
        f"Line charts of accuracy and sparsity over {len(history)} epochs: the sparsity rises "
        "while the accuracy meets the floor."
    )
    return Drawing("floor", "", alt, lambda width: _figure(width, 380, draw_all), wide=HALF)


def _drawing(name: str, alt: str, draw: Callable[[Axes], None]) -> Drawing:
    def draw_all(figure: Figure) -> None:
        draw(figure.subplots())

    return Drawing(name, "", alt, lambda width: _figure(width, 300, draw_all), wide=HALF)


def _figure(width: int, height: int, draw: Callable[[Figure], None]) -> Figure:
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    draw(figure)
    return figure


if __name__ == "__main__":
    main()
