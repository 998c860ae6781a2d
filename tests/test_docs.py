"""Pages of the documentation: their code, the names in them, the API pages, and the site."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image, ImageSequence

import prunus
from helpers.browser import headless_browser
from helpers.pages import DOCS, ROOT, blocks, broken_links, missing_names, pages, run_page
from prunus.cli.app import app

SOURCE = Path(prunus.__file__).parent

SLOW = ("quickstart.md", "speed.md")
FRAMEWORKS = (
    "accelerate.md",
    "lightning.md",
    "onnx.md",
    "transformers.md",
    "coming-from.md",
    "compact.md",
)

OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")
"""The pages that are not part of the site."""

LAYOUTS = ("api/training.md", "api/scores.md")
"""The API pages that are opened in a browser; all of them have one layout."""

CUT_OFF = (
    "[...document.querySelectorAll('pre > code')]"
    ".filter(code => code.scrollWidth > code.clientWidth).map(code => code.innerText)"
)
"""The texts of the blocks of code that do not fit their page, in JavaScript."""

DOCUMENTED = (
    "allocation",
    "bench",
    "compaction",
    "errors",
    "export",
    "fitting",
    "growth",
    "history",
    "masks",
    "methods",
    "patterns",
    "penalties",
    "report",
    "runtime",
    "schedules",
    "scores",
    "sensitivity",
    "studies",
)
"""The modules of which every public name has a place on an API page."""

INTEGRATIONS = ("integrations.accelerate", "integrations.lightning", "integrations.transformers")
"""The same, of modules that import a framework."""


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


@pytest.mark.parametrize("name", OUTSIDE)
def test_every_link_outside_the_site_leads_somewhere(name: str) -> None:
    assert broken_links(ROOT / name) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](page.md#a-heading) [b](#b) [c](c.md) [d](https://e.org/f)\n")
    assert broken_links(page) == ["](#b)", "](c.md)"]


def test_a_name_that_does_not_exist_is_found() -> None:
    text = "`prunus.Pruner.step`, prunus.export.to_onnx and `prunus.Prunner`, prunus.export.to_tar"
    assert missing_names(text) == ["prunus.Prunner", "prunus.export.to_tar"]


def undocumented(names: Iterable[str], pattern: str) -> list[str]:
    """Return the public names of modules that are on no API page.

    Args:
        names: The modules.
        pattern: The names of the pages.
    """
    found: set[int] = set()
    for page in (DOCS / "api").glob(pattern):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE):
            module, _, name = path.rpartition(".")
            found.add(id(getattr(importlib.import_module(module), name)))
    public = {
        f"{name}.{member}": getattr(module, member)
        for name in names
        for module in [importlib.import_module(name)]
        for member in module.__all__
        if member != "__version__"
    }
    return [name for name, value in public.items() if id(value) not in found]


def test_every_public_name_is_on_an_api_page() -> None:
    names = ("prunus", *(f"prunus.{name}" for name in DOCUMENTED))
    assert undocumented(names, "[!i]*.md") == []


@pytest.mark.frameworks
def test_every_integration_is_on_an_api_page() -> None:
    assert undocumented((f"prunus.{name}" for name in INTEGRATIONS), "integrations.md") == []


def test_every_subcommand_is_in_the_table_of_the_command() -> None:
    named = re.findall(r"^\| `prunus (\w+)", (DOCS / "command.md").read_text(), flags=re.MULTILINE)
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert sorted(named) == sorted(commands)


def test_every_extra_is_in_the_table_of_the_installation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (DOCS / "installation.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted([*named, "all"]) == sorted(project["optional-dependencies"])


def messages(path: Path) -> Iterator[str]:
    """Yield the texts of a module, with WORDS for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "WORDS" for v in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd]|%\.\d+f", "WORDS", node.value)


def explained_warnings() -> list[str]:
    section = (DOCS / "choosing.md").read_text().partition("## What a warning means")[2]
    rows = re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE)
    return [row for row in rows if row != "warning"]


def test_every_explained_warning_is_one_of_the_code() -> None:
    source = "\n".join(text for path in SOURCE.rglob("*.py") for text in messages(path))
    assert explained_warnings()
    assert [words for words in explained_warnings() if words not in source] == []


def test_every_module_that_warns_has_a_warning_that_is_explained() -> None:
    settings = {"recipes/config.py"}  # of the command, which names the setting
    found = [
        path.relative_to(SOURCE).as_posix()
        for path in sorted(SOURCE.rglob("*.py"))
        if re.search(r"\bwarnings\.warn\(|_LOG\.warning\(\n", path.read_text())
        and not any(words in text for text in messages(path) for words in explained_warnings())
    ]
    assert set(found) == settings


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert lines.index("## What it works with") < 60


@pytest.fixture(scope="module")
def drawn() -> ModuleType:
    """Return the script that draws the pictures of the concepts, as a module."""
    specification = importlib.util.spec_from_file_location("pictures", DOCS / "draw_concepts.py")
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = script  # where its dataclass looks for its types
    specification.loader.exec_module(script)
    return script


@pytest.mark.slow
def test_the_pictures_of_the_concepts_are_drawn_by_their_script(
    drawn: ModuleType, tmp_path: Path
) -> None:
    drawn.main(tmp_path)
    committed = DOCS / "pictures"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name for p in committed.glob("concepts-*")
    )
    # Only this one does not depend on a training, and so on the machine.
    name = "concepts-coefficients.svg"
    texts = [
        re.findall(r"<text[^>]*>(.*?)</text>", (f / name).read_text())
        for f in (tmp_path, committed)
    ]
    assert texts[0] == texts[1]
    assert "constant: L2" in texts[0]


def test_the_image_of_a_layer_has_a_tile_for_each_neuron(drawn: ModuleType) -> None:
    weight = torch.zeros(4, 64)
    weight[1, 8 * 2 + 3] = 1.0  # row 2, column 3 of the second neuron
    weight[2, 0] = -1.0
    weight[2, 1] = -1e-4
    image = drawn.layer_image(weight, columns=2)
    blue, orange, grey = (to_rgb(color.light) for color in (drawn.BLUE, drawn.ORANGE, drawn.GRID))
    expected = np.full((17, 17, 3), grey)
    expected[8] = expected[:, 8] = 1.0  # the white lines between the tiles
    expected[2, 9 + 3] = blue
    expected[9, 0] = orange
    # The palest step: a quarter of the way from grey to orange.
    expected[9, 1] = np.array(grey) + (np.array(orange) - grey) / 4
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_the_animation_shows_every_epoch_until_the_delivered_one() -> None:
    with Image.open(DOCS / "pictures" / "concepts-first-layer.gif") as animation:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(animation)]
    assert durations == [1500, *[250] * 28, 4000]  # the quickstart delivers epoch 29
    assert (DOCS / "pictures" / "concepts-first-layer.gif").stat().st_size < 1e6


def test_the_text_alternative_of_the_animation_is_that_of_its_script(drawn: ModuleType) -> None:
    layer = [drawn.Snapshot(0, torch.zeros(300, 64), 0.9, 0.0)]
    alt = drawn.layer_picture(layer).alt
    for page in ("README.md", "docs/concepts.md"):
        assert alt in (ROOT / page).read_text(), page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # a broken link, or a role without an object
    return folder


@pytest.mark.slow
def test_the_site_has_every_page_and_no_role_as_text(site: Path) -> None:
    built = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    assert set(pages()) <= built
    assert [
        p.name for p in site.rglob("*.html") if re.search(r":(class|meth):", p.read_text())
    ] == []


@pytest.mark.slow
def test_every_page_fits_its_window_and_loads_nothing_from_the_network(
    site: Path,
) -> None:
    with headless_browser() as browser:
        for name in [n for n in pages() if not n.startswith("api/") or n in LAYOUTS]:
            for width, dark in [(400, False), (1400, True)]:
                browser.open((site / name).with_suffix(".html"), width=width, dark=dark)
                measured = browser.evaluate(
                    "[document.documentElement.scrollWidth, document.body.dataset.mdColorScheme]"
                )
                assert measured == [width, "slate" if dark else "default"], name
                assert width == 400 or browser.evaluate(CUT_OFF) == [], name
        assert browser.problems == []


@pytest.mark.slow
def test_a_site_in_a_folder_can_be_searched(site: Path) -> None:
    with headless_browser() as browser:
        browser.open(site / "index.html", width=1400, dark=False)
        browser.evaluate(
            "document.querySelector('[data-md-toggle=search]').click();"
            "const box = document.querySelector('.md-search__input');"
            "box.value = 'irrelevance'; box.dispatchEvent(new Event('keyup'))"
        )
        end = time.monotonic() + 30
        found = ""
        while "match" not in found and time.monotonic() < end:
            found = browser.evaluate("document.querySelector('.md-search-result__meta').innerText")
        assert re.match(r"\d+ matching documents", found)
        assert browser.problems == []
