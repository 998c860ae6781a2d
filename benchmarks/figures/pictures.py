"""Pictures of the README, drawn from the result files as reports draw them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from benchmarks.figures.common import comparisons
from benchmarks.figures.comparisons import NETWORKS
from benchmarks.measuring import RESULTS
from prunus.report.figures.drawing import HALF, Drawing, save_drawing
from prunus.report.figures.study_curves import study_curves
from prunus.studies.tables import format_sparsity

FOLDER = RESULTS.parent.parent / "docs" / "pictures"

STUDY = "shakespeare-lm"
"""The study of the README's picture."""


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


def write() -> None:
    """Write the picture."""
    FOLDER.mkdir(exist_ok=True)
    save_drawing(picture(), FOLDER, STUDY, suffixes=("svg",))
