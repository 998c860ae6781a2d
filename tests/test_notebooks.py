"""The notebooks of examples/notebooks/, executed, and their saved outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import ROOT, broken_links, missing_names

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

source, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, target)
"""

by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, cell_type: str) -> Iterator[dict[str, Any]]:
    """Yield the cells of a type."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == cell_type:
            yield cell


def source(cell: dict[str, Any]) -> str:
    """Return the text of a cell."""
    return "".join(cell["source"])


def printed(cell: dict[str, Any]) -> tuple[str, list[str]]:
    """Return what a cell printed, numbers as 0, and the types of its other outputs.

    Of a cell with the tag "varies", whose text depends on the machine, only whether it printed.
    Warnings, such as that timings on a busy machine differ, do not count.
    """
    # The kernel may send one text in several outputs.
    streams = [o for o in cell["outputs"] if o["output_type"] == "stream"]
    text = "".join("".join(o["text"]) for o in streams if o["name"] == "stdout")
    text = re.sub(r"\s+", " ", re.sub(r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", "0", text))
    if "varies" in cell["metadata"].get("tags", []):
        text = "varies" if text else ""
    return text, [o["output_type"] for o in cell["outputs"] if o not in streams]


def execute(path: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Execute a notebook, with relative paths from the folder of the target, and write it there."""
    return subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(target)],
        cwd=target.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(target.parent / "ipython")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
@by_notebook
def test_a_notebook_runs_and_prints_what_it_shows(path: Path, tmp_path: Path) -> None:
    done = execute(path, tmp_path / path.name)
    assert done.returncode == 0, done.stderr
    pairs = zip(cells(path, "code"), cells(tmp_path / path.name, "code"), strict=True)
    for saved, executed in pairs:
        assert printed(executed) == printed(saved), source(saved)


@pytest.mark.slow
def test_a_cell_that_raises_is_found(tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOKS[0].read_text())
    (tmp_path / "out").mkdir()
    planted: dict[str, Any] = {"cell_type": "code", "id": "planted", "metadata": {}, "outputs": []}
    planted |= {"execution_count": None, "source": ["prunus = 1 / 0"]}
    (tmp_path / "a.ipynb").write_text(json.dumps({**notebook, "cells": [planted]}))
    done = execute(tmp_path / "a.ipynb", tmp_path / "out" / "a.ipynb")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_numbers_of_a_saved_output_may_differ_and_words_may_not() -> None:
    def cell(text: str, *tags: str) -> dict[str, Any]:
        output = {"output_type": "stream", "name": "stdout", "text": [text]}
        return {"metadata": {"tags": tags}, "outputs": [output]}

    assert printed(cell("sparsity  0.52, error 2e-06")) == printed(cell("sparsity 0.7, error 1"))
    assert printed(cell("sparsity 0.5")) != printed(cell("density 0.5"))
    assert printed(cell("sparsity 0.5", "varies")) == printed(cell("density 0.5", "varies"))


@by_notebook
def test_a_notebook_was_saved_after_a_run_from_its_top(path: Path) -> None:
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for c in cells(path, "code") for o in c["outputs"] if o.get("name") == "stderr"]
    assert path.stat().st_size < 300_000


@by_notebook
def test_the_names_and_links_of_a_notebook_lead_somewhere(path: Path) -> None:
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    assert missing_names(code) == []
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    assert broken_links(path, prose) == []


def test_every_notebook_is_in_the_list_of_examples() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    assert len(NOTEBOOKS) == 3
    assert [path.name for path in NOTEBOOKS if f"`notebooks/{path.name}`" not in page] == []
