"""Pages whose figures are rendered from the committed result files, and the table of methods."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.figures import comparisons, details, methods, pictures, readme, zoo
from benchmarks.measuring import RESULTS

ROOT = RESULTS.parent.parent

MARKED = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


def render() -> dict[Path, str]:
    """Return each page's figures as Markdown."""
    sections = {
        "Comparisons of methods": comparisons.details(),
        "Sparse layers": details.kernels(),
        "Sparse files": details.sparse_files(),
        "What a training step costs": details.overhead(),
        "What a pruning costs": details.threshold(),
        "Several processes": details.processes(),
        "Against the formulas": details.contract(),
        "Interruption": details.kills(),
    }
    return {
        ROOT / "README.md": "\n".join(
            [
                pictures.image(),
                *comparisons.summary(),
                readme.networks(),
                *readme.whole_networks(),
            ]
        ),
        ROOT / "docs" / "figures.md": "\n".join(
            f"## {title}\n\n{text}" for title, text in sections.items()
        ),
        ROOT / "docs" / "methods.md": methods.table(),
        ROOT / "docs" / "models.md": zoo.table(),
    }
