"""Pictures of the README and of the results, drawn from the result files as reports draw them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from benchmarks.figures.common import comparisons, load, machine
from benchmarks.figures.comparisons import NETWORKS
from benchmarks.measuring import RESULTS
from prunus.report.figures.drawing import HALF, Drawing, save_drawing
from prunus.report.figures.palette import MUTED, SERIES
from prunus.report.figures.study_curves import study_curves
from prunus.studies.tables import format_sparsity

FOLDER = RESULTS.parent.parent / "docs" / "pictures"

STUDY = "shakespeare-lm"
"""The study of the README's picture."""

LAYER_TYPES = {
    "norm": "normalization",
    "embedding and head": "token embedding and output",
    "embedding": "position embedding",
    "attention": "attention",
    "feed-forward": "feed-forward",
}
"""The layer types of that study's network, from the top of the picture of the densities."""

DENSITIES_OF = ("prunus", "magnitude")
"""The methods of that picture."""

LAYER, BATCHES = [1024, 1024], (1, 64, 256)
"""The linear layer and the batches of the picture of the speed."""

SPOKEN = (0.5, 0.9, 0.95, 0.99)
"""The sparsities that its text alternative names."""


def picture() -> Drawing:
    """Return the drawing of the README's study."""
    # Narrow, so that its text can be read on a telephone.
    return replace(study_curves(comparisons([STUDY])[STUDY].table()), wide=HALF)


def picture_path() -> Path:
    """Return the path of the README's picture."""
    return FOLDER / f"{STUDY}-{picture().name}.svg"


def image(folder: Path) -> str:
    """Return the Markdown that shows the picture, with its text alternative and its caption.

    Args:
        folder: The folder of the page, to which the path of the picture is relative.
    """
    drawing, path = picture(), picture_path().relative_to(folder)
    (sparsity,) = {
        format_sparsity(statistics.fmean(row.outcome.sparsities))
        for row in comparisons([STUDY])[STUDY].table().rows
    }
    return (
        f"![{drawing.alt}]({path})\n\n"
        f"*{NETWORKS[STUDY]}, without {sparsity} of its weights. {drawing.title}. "
        f"{drawing.caption}*\n"
    )


def speed() -> Drawing:
    """Return the drawing of the speed of sparse linear layers by their sparsity."""
    record = load("kernels")
    lines: dict[tuple[int, str], dict[float, float]] = {}
    for row in record["rows"]:
        if (row["layer"], row["shape"]) == ("linear", LAYER) and row["batch"] in BATCHES:
            for name in ("sparse", "csr"):
                line = lines.setdefault((row["batch"], name), {})
                line[row["sparsity"]] = row["times_faster_than_dense"][name]

    def draw(width: int) -> Figure:
        figure = Figure(figsize=(width / 72, 320 / 72), layout="constrained")
        axes = figure.subplots()
        # Columns of the legend: first the sparse layers, then CSR.
        for (batch, name), line in sorted(lines.items(), key=lambda entry: entry[0][1] == "csr"):
            axes.plot(
                [1 - sparsity for sparsity in line],
                list(line.values()),
                color=SERIES[BATCHES.index(batch)].light,
                linestyle="-" if name == "sparse" else ":",
                label=f"batch {batch}" if name == "sparse" else f"CSR, batch {batch}",
            )
        axes.axhline(1, color=MUTED.light, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.xaxis.set_major_locator(FixedLocator([0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{1 - density:.1%}"))
        axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda faster, _: f"{faster:g}×"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("sparsity")
        axes.set_title("times faster than dense", color=MUTED.light)
        axes.legend(loc="upper left", ncols=2)
        return figure

    values = "; ".join(
        f"with batch {batch}, "
        + ", ".join(
            f"{line[sparsity]:.1f} at {sparsity:.0%}" for sparsity in (0.5, 0.9, 0.95, 0.99)
        )
        for (batch, name), line in lines.items()
        if name == "sparse"
    )
    rows, columns = LAYER
    return Drawing(
        "speed",
        f"A sparse linear layer of {rows}×{columns} beside torch's dense one, by its sparsity",
        f"Chart of how many times faster than dense a sparse linear layer is: {values}",
        draw,
        f"Dotted: torch's CSR matrix. {machine(record['environment'])}, {record['date'][:10]}.",
    )


def speed_path() -> Path:
    """Return the path of the picture of the speed."""
    return FOLDER / f"kernels-{speed().name}.svg"


def speed_image(folder: Path) -> str:
    """Return the Markdown that shows the picture of the speed, as :func:`image` does."""
    drawing, path = speed(), speed_path().relative_to(folder)
    return f"![{drawing.alt}]({path})\n\n*{drawing.title}. {drawing.caption}*\n"


def densities() -> Drawing:
    """Return the drawing of the densities of layer types in the README's study, by method."""
    found: dict[str, dict[str, list[float]]] = {method: {} for method in DENSITIES_OF}
    sparsities = []
    for run in comparisons([STUDY])[STUDY].finished:
        if run.cell.method in found and run.summary is not None:
            sparsities.append(run.summary["sparsity"])
            for name, counts in run.summary["layer_types"].items():
                density = counts["nonzero"] / counts["prunable"]
                found[run.cell.method].setdefault(name, []).append(density)
    kept = 1 - statistics.fmean(sparsities)

    def draw(width: int) -> Figure:
        figure = Figure(figsize=(width / 72, 300 / 72), layout="constrained")
        axes = figure.subplots()
        for (method, types), color in zip(found.items(), SERIES, strict=False):
            for place, name in enumerate(LAYER_TYPES):
                points = types[name]
                axes.plot(points, [place] * len(points), "o", color=color.light, markersize=3)
                axes.plot(
                    statistics.fmean(points), place, "o", color=color.light, markersize=8,
                    label=method if place == 0 else None,
                )  # fmt: skip
        axes.axvline(kept, color=MUTED.light, linewidth=1.2, label=f"all: {kept:.0%}")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([0.003, 0.01, 0.03, 0.1, 0.3, 1]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{density:.1%}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0.002, 1)
        axes.set_yticks(range(len(LAYER_TYPES)), list(LAYER_TYPES.values()))
        axes.set_ylim(len(LAYER_TYPES) - 0.5, -0.5)
        axes.set_xlabel("density")
        figure.legend(loc="outside upper right", ncols=3)
        return figure

    values = "; ".join(
        f"{method} "
        + ", ".join(
            f"{label} {statistics.fmean(types[name]):.1%}" for name, label in LAYER_TYPES.items()
        )
        for method, types in found.items()
    )
    return Drawing(
        "densities",
        f"Density by layer type of {NETWORKS[STUDY]}, without {1 - kept:.1%} of its weights",
        f"Chart of the density of each layer type by method: {values}",
        draw,
        "Mean, and a small point for each seed.",
        wide=HALF,
    )


def densities_path() -> Path:
    """Return the path of the picture of the densities."""
    return FOLDER / f"{STUDY}-{densities().name}.svg"


def densities_image(folder: Path) -> str:
    """Return the Markdown that shows the picture of the densities, as :func:`image` does."""
    drawing, path = densities(), densities_path().relative_to(folder)
    return f"![{drawing.alt}]({path})\n\n*{drawing.title}. {drawing.caption}*\n"


def write() -> None:
    """Write the pictures."""
    FOLDER.mkdir(exist_ok=True)
    save_drawing(densities(), FOLDER, STUDY, suffixes=("svg",))
    save_drawing(picture(), FOLDER, STUDY, suffixes=("svg",))
    save_drawing(speed(), FOLDER, "kernels", suffixes=("svg",))
