"""Pages of the documentation: their code, the names in them, the API pages, and the site."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from helpers.pages import DOCS, ROOT, blocks, missing_names, pages, run_page

SLOW = {"quickstart.md": "slow", "speed.md": "slow"}
FRAMEWORKS = ("accelerate.md", "lightning.md", "onnx.md", "transformers.md", "compact.md")

DOCUMENTED = (
    "allocation",
    "bench",
    "compaction",
    "errors",
    "export",
    "growth",
    "history",
    "integrations.accelerate",
    "integrations.lightning",
    "masks",
    "methods",
    "penalties",
    "report",
    "runtime",
    "schedules",
    "scores",
    "sensitivity",
    "studies",
    "validation",
)
"""The modules of which every public name has a place on an API page."""


def with_marks() -> list[object]:
    """Return the pages with code, each with the marker of its time."""
    found: list[object] = []
    for name in pages():
        if any(block.language != "text" for block in blocks((DOCS / name).read_text())):
            marks = [pytest.mark.slow] if name in SLOW else []
            marks += [pytest.mark.frameworks] if name in FRAMEWORKS else []
            found.append(pytest.param(name, marks=marks))
    return found


@pytest.mark.parametrize("name", with_marks())
def test_the_code_of_a_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / name)


def test_a_wrong_output_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('sparsity 0.5')\n```\n\n```text\nsparsity 0.7\n```\n")
    run_page(page)
    page.write_text("```python\nprint('density 0.5')\n```\n\n```text\nsparsity 0.7\n```\n")
    with pytest.raises(AssertionError, match="page.md"):
        run_page(page)
    page.write_text("```pycon\n>>> 1 + 1\n3\n\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        run_page(page)
    page.write_text("<!-- hidden code\nx = 1\n-->\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page)


@pytest.mark.parametrize("name", [*pages(), "../README.md", "../CONTRIBUTING.md"])
def test_every_name_in_a_page_exists(name: str) -> None:
    if name == "changelog.md":
        pytest.skip("the changelog has the names of earlier drafts")
    assert missing_names((DOCS / name).read_text()) == []


def test_a_name_that_does_not_exist_is_found() -> None:
    text = "`prunus.Pruner.step`, prunus.export.to_onnx and `prunus.Prunner`, prunus.export.to_tar"
    assert missing_names(text) == ["prunus.Prunner", "prunus.export.to_tar"]


def documented() -> set[int]:
    """Return the identities of the objects on the API pages."""
    found: set[int] = set()
    for page in (DOCS / "api").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE):
            module, _, name = path.rpartition(".")
            found.add(id(getattr(importlib.import_module(module), name)))
    return found


def test_every_public_name_is_on_an_api_page() -> None:
    public = {name: getattr(prunus, name) for name in prunus.__all__ if name != "__version__"}
    for name in DOCUMENTED:
        module = importlib.import_module(f"prunus.{name}")
        public |= {f"{name}.{member}": getattr(module, member) for member in module.__all__}
    found = documented()
    assert [name for name, value in public.items() if id(value) not in found] == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert lines.index("## What it works with") < 60


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api" / "training.html").exists()
