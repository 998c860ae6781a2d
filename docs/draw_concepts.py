"""Pictures of the page on concepts, drawn from the definitions and from the quickstart's training.

Run from the repository's root: ``make figures``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

import prunus
from prunus.report.figures.drawing import HALF, Drawing, save_drawing
from prunus.report.figures.palette import BLUE, GOLD, GREEN, GRID, MUTED, ORANGE

DOCS = Path(__file__).resolve().parent

_KEPT = 0.1
"""The fraction of the weights that the picture of the scores keeps."""


_EVERY = 16
"""One of so many weights is shown as a point."""

_SIDE = 8
"""The width and height of the digits in pixels, and so of the image of a neuron's weights."""

_SATURATED = 0.3
"""The magnitude of a weight from which its color is strongest."""

_PALE = 0.25
"""The strength of the color of a kept weight near 0, so that it differs from a removed one."""

_COLORS = 32
"""The number of colors of the animation."""

_MILLISECONDS = 250
"""The time that the animation shows an epoch."""

_STEPS = 5
"""The number of steps from a pale to a strong color."""

_LAYER_ALT = (
    "{count} images of 8 by 8 weights, one for each neuron of the first layer. Weights vanish "
    "while the network trains, those at the left and right borders first; at the end most images "
    "are empty, and each of the others has a few weights."
)


@dataclass(frozen=True)
class Snapshot:
    """The first layer at one validation.

    Attributes:
        epoch: The epoch after which the network was validated; 0 before the pruning.
        weight: The weights, of shape (neurons, pixels).
        accuracy: The validation accuracy.
        sparsity: The sparsity of the whole network.
    """

    epoch: int
    weight: torch.Tensor
    accuracy: float
    sparsity: float

    @property
    def title(self) -> str:
        """The numbers of the validation in words."""
        return f"epoch {self.epoch}: {self.sparsity:.0%} removed, accuracy {self.accuracy:.3f}"


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
    snapshots = pruned_layer(names, sparse)
    floor, still = floor_picture(names["pruner"]), layer_picture(snapshots)
    for drawing in (coefficients_picture(), scores, floor, still):
        save_drawing(drawing, folder, "concepts", suffixes=("svg",))
    save_animation(snapshots, folder / "concepts-first-layer.gif")


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
        axes.set_ylim(2e-10, square.max() * 2)  # no label at the end, where that of the x axis is
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
    delivered = _delivered(pruner)

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


def pruned_layer(names: dict[str, Any], code: str) -> list[Snapshot]:
    """Prune the network, and return its first layer before and after each epoch.

    The last epoch returned is the one whose state ``finish`` delivers.

    Args:
        names: The names of the quickstart after its dense training; receives those of the pruning.
        code: The quickstart's code that prunes.
    """
    accuracy = names["accuracy"]
    weights = [names["model"][0].weight.detach().clone()]

    def recorded_accuracy() -> float:
        weights.append(names["model"][0].weight.detach().clone())
        return float(accuracy())

    names["accuracy"] = recorded_accuracy
    exec(code, names)
    names["accuracy"] = accuracy
    history = list(names["pruner"].history)[: _delivered(names["pruner"]) + 1]
    after = [(float(validation.metric or 0), validation.sparsity) for validation in history]
    measured = [(names["dense"], 0.0), *after]
    return [
        Snapshot(epoch, weights[epoch], metric, sparsity)
        for epoch, (metric, sparsity) in enumerate(measured)
    ]


def layer_image(weight: torch.Tensor, columns: int) -> NDArray[np.float64]:
    """Return the weights of all neurons as one image: blue above 0, orange below, empty at 0.

    Args:
        weight: The weights, of shape (neurons, pixels).
        columns: The number of neurons in a row of the image.

    Returns:
        Red, green and blue in [0, 1], of shape (height, width, 3), with a white line between
        neurons.
    """
    magnitude = (weight.abs() / _SATURATED).clamp(max=1).sqrt()
    # In few steps, which an animation compresses well.
    strength = _PALE + (1 - _PALE) * (magnitude * _STEPS).round() / _STEPS
    strength = strength.masked_fill(weight == 0, 0.0).unsqueeze(-1)
    blue, orange, empty = (
        torch.tensor(to_rgb(color.light), dtype=weight.dtype) for color in (BLUE, ORANGE, GRID)
    )
    color = torch.where(weight.unsqueeze(-1) > 0, blue, orange)
    pixels = empty.lerp(color.expand(*weight.shape, 3), strength)
    tiles = pixels.reshape(-1, columns, _SIDE, _SIDE, 3)
    tiles = torch.nn.functional.pad(tiles, (0, 0, 0, 1, 0, 1), value=1.0)
    rows, _, height, width, _ = tiles.shape
    image = tiles.transpose(1, 2).reshape(rows * height, columns * width, 3)
    return image[:-1, :-1].double().numpy()


def layer_picture(snapshots: Sequence[Snapshot]) -> Drawing:
    """Return the drawing of the first layer at four epochs."""
    last = len(snapshots) - 1
    chosen = [snapshots[epoch] for epoch in (0, last // 3, 2 * last // 3, last)]

    def draw_all(figure: Figure) -> None:
        figure.add_artist(Rectangle((0, 0), 1, 1, color="white", zorder=-1))
        for axes, snapshot in zip(figure.subplots(2, 2).flat, chosen, strict=True):
            # Several pixels for each weight, because a browser smooths an enlarged image.
            image = layer_image(snapshot.weight, columns=20).repeat(4, 0).repeat(4, 1)
            axes.imshow(image, interpolation="none")
            axes.set_axis_off()
            axes.set_title(
                f"epoch {snapshot.epoch}: {snapshot.sparsity:.0%} removed", color=MUTED.light
            )

    alt = _LAYER_ALT.format(count=len(snapshots[0].weight))
    return Drawing("first-layer", "", alt, lambda width: _figure(width, 440, draw_all), wide=HALF)


def save_animation(snapshots: Sequence[Snapshot], path: Path) -> None:
    """Write the first layer over the epochs as an animated GIF with a white background.

    Args:
        snapshots: The layer at each epoch.
        path: The file.
    """
    frames = [_frame(snapshot) for snapshot in snapshots]
    # One palette for all, so that colors do not flicker.
    width, height = frames[0].size
    ends = Image.new("RGB", (width, 2 * height))
    ends.paste(frames[0], (0, 0))
    ends.paste(frames[-1], (0, height))
    palette = ends.quantize(_COLORS, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_MILLISECONDS] * len(frames)
    durations[0], durations[-1] = 1500, 4000
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
    )


def _frame(snapshot: Snapshot) -> Image.Image:
    """Return one image of the animation."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(layer_image(snapshot.weight, columns=20), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(snapshot.title, color=MUTED.light)

    drawing = Drawing("frame", "", "", lambda width: _figure(width, 430, draw))
    with TemporaryDirectory() as folder:
        (file,) = save_drawing(drawing, Path(folder), "layer", suffixes=("png",))
        drawn = Image.open(file).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    return Image.alpha_composite(white, drawn).convert("RGB")


def _delivered(pruner: prunus.Pruner) -> int:
    """Return the index of the validation whose state ``finish`` delivers."""
    return max(place for place, validation in enumerate(pruner.history) if validation.best)


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
