"""Recipes of installed packages, which the command knows by the names of their entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import prunus, summary
from recipes.custom.sources import write

HELPER = "from .helper import WIDTH\n\nsettings = dict(width=WIDTH, "


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with an installed package ``stripes``, with a recipe ``stripes-small``."""
    site = tmp_path / "site-packages"
    install(site, "stripes", "stripes-small = stripes.small")
    package = site / "stripes"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("WIDTH = 24\n")
    write(package / "small.py", ("settings = dict(", HELPER), (", width=32)", ")"))
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "stripes"]:
        del sys.modules[name]


def install(site: Path, package: str, line: str) -> None:
    """Write the metadata of a package with an entry point."""
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[prunus.recipes]\n{line}\n")


def test_recipe_is_listed_run_and_found_again(site: Path, tmp_path: Path) -> None:
    assert "stripes-small │ A perceptron that learns" in " ".join(prunus("recipes").out.split())
    assert "24" in prunus("recipes", "stripes-small").out
    run = tmp_path / "run"
    assert prunus("run", "stripes-small", "--out", run).code == 0
    assert summary(run)["recipe"] == "stripes-small"
    outcome = prunus("sensitivity", run, "--sparsities", "0.5")
    assert outcome.code == 0, outcome
    assert "changed" not in outcome.out
    small = site / "stripes" / "small.py"
    small.write_text(small.read_text() + "\n# changed\n")
    outcome = prunus("sensitivity", run, "--sparsities", "0.5")
    assert "the recipe stripes-small has changed since it trained this network" in outcome.out
    prunus("run", "stripes-small", "--out", run, "--resume").refused("stripes-small has changed")


def test_names_of_packages_are_suggested(site: Path) -> None:
    prunus("run", "stripes-smal").refused("Did you mean stripes-small?", ", stripes-small\n")


def test_failing_package_is_reported_with_its_lines(site: Path) -> None:
    (site / "stripes" / "helper.py").write_text("raise OSError('no data')\n")
    prunus("recipes", "stripes-small").refused(
        "the recipe stripes-small, stripes.small, failed:\n  small.py, line 11, in <module>\n",
        "  helper.py, line 1, in <module>\n    raise OSError('no data')\nOSError: no data",
    )


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    install(site, "others", "stripes-small = others.large")
    prunus("recipes", "stripes-small").refused(
        "two installed packages have a recipe 'stripes-small'", "others.large", "stripes.small"
    )


def test_built_in_recipe_goes_before_one_of_a_package(site: Path) -> None:
    install(site, "others", "digits = others.digits")
    note = "others.digits has the name of a built-in recipe, digits, and is hidden\n"
    assert prunus("recipes").out.endswith(note)
    assert prunus("recipes", "digits").code == 0


def test_package_without_the_module_is_reported(site: Path) -> None:
    install(site, "others", "absent = stripes.absent")
    message = (
        "the recipe absent, stripes.absent, is not in a Python file: install its package again"
    )
    prunus("recipes", "absent").refused(message)
    listed = prunus("recipes")
    assert listed.code == 0
    assert listed.out.endswith(f"{message}\n")
