"""Pages whose figures are rendered from the committed result files, and the tables of methods."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.figures import comparisons, details, methods, networks, pictures, readme, zoo
from benchmarks.measuring import RESULTS

ROOT = RESULTS.parent.parent

FIGURES = ROOT / "docs" / "figures.md"

MARKED = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


def render() -> dict[Path, str]:
    """Return each page's figures as Markdown."""
    sections = {
        "Comparisons of methods": pictures.image(FIGURES.parent) + "\n" + comparisons.details(),
        "Classifiers": networks.classifiers(),
        "Whole networks": networks.whole_networks(),
        "Sparse layers": pictures.speed_image(FIGURES.parent) + "\n" + details.kernels(),
        "Sparse layers in bfloat16 and int8": details.precisions(),
        "Sparse files": details.sparse_files(),
        "Networks in int8": details.int8(),
        "What a training step costs": details.overhead(),
        "Sparse training": details.sparse_training(),
        "What a pruning costs": details.threshold(),
        "Several processes": details.processes(),
        "Against the formulas": details.contract(),
        "Interruption": details.kills(),
        "Busy machines": details.under_load(),
    }
    return {
        ROOT / "README.md": f"{pictures.image(ROOT)}\n{readme.headlines()}",
        FIGURES: "\n".join(f"## {title}\n\n{text}" for title, text in sections.items()),
        ROOT / "docs" / "concepts.md": pictures.densities_image(FIGURES.parent),
        ROOT / "docs" / "speed.md": pictures.speed_image(FIGURES.parent),
        ROOT / "docs" / "methods.md": methods.tables(),
        ROOT / "docs" / "models.md": zoo.table(),
    }
