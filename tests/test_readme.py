"""README: its code blocks, commands and figures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.figures.common import load
from benchmarks.figures.pages import render
from benchmarks.figures.pictures import (
    LAYER_TYPES,
    STUDY,
    densities,
    densities_path,
    picture,
    picture_path,
    speed,
    speed_path,
)
from prunus.recipes.registry import RECIPES, find_recipe
from prunus.report.figures.drawing import Drawing, save_drawing

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_loop_runs_and_prunes() -> None:
    names, trained = run_loop()
    assert names["pruner"].sparsity > 0.99
    assert trained == list(range(100))


def test_the_loop_trains_for_all_epochs_after_the_last_removal() -> None:
    """A learning rate that falls until the last epoch must not be cut short."""
    names, trained = run_loop("floor=", "schedule=prunus.OneShot(sparsity=0.5), floor=")
    assert names["pruner"].done
    assert trained == list(range(100))


def test_the_loop_without_the_added_lines_does_not_use_prunus() -> None:
    assert "prun" not in loop(("  ",))
    assert "prunus.Pruner(" in loop(("  ", "+ "))


def loop(marks: tuple[str, ...]) -> str:
    """Return the lines of the loop with one of these marks before them."""
    (block,) = re.findall(r"```diff\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert all(line[:2] in ("  ", "+ ", "") for line in block.splitlines())
    return "".join(f"{line[2:]}\n" for line in block.splitlines() if line[:2] in marks)


def run_loop(before: str = "", after: str = "") -> tuple[dict[str, Any], list[int]]:
    """Run the loop, with a replacement; return its names, and the epochs that it trains for."""
    code = loop(("  ", "+ "))
    assert before in code
    code = code.replace(before, after) if before else code
    trained: list[int] = []
    model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))

    def accuracy(_: torch.nn.Module) -> float:
        trained.append(names["epoch"])
        return 0.985

    names: dict[str, Any] = {
        "model": model,
        "loader": [(torch.ones(2, 64), torch.zeros(2, 10))],
        "loss_function": torch.nn.functional.mse_loss,
        "accuracy": accuracy,
    }
    exec(code, names)
    return names, trained


@pytest.mark.parametrize("page", ["README.md", "docs/command.md"])
def test_the_commands_name_recipes_and_settings_that_exist(page: str) -> None:
    text = (README.parent / page).read_text()
    lines = re.findall(r"^    prunus run (.*)$", text, flags=re.MULTILINE)
    assert lines
    for line in lines:
        recipe, *rest = shlex.split(line, comments=True)
        settings = [value for flag, value in pairwise(rest) if flag == "--set"]
        find_recipe(recipe).config.with_settings(settings)


def test_every_recipe_is_in_the_changelog() -> None:
    changelog = (README.parent / "CHANGELOG.md").read_text()
    assert [name for name in RECIPES if f"`{name}`" not in changelog] == []


def test_the_figures_are_those_of_the_result_files() -> None:
    pages = render()
    assert README in pages
    for page, figures in pages.items():
        text = page.read_text()
        assert text.split("<!-- figures -->\n")[1].split("<!-- end of figures -->")[0] == figures


@pytest.mark.parametrize(
    ("drawing", "committed", "stem", "shown"),
    [
        (picture, picture_path, STUDY, "prunus"),
        (densities, densities_path, STUDY, "position embedding"),
        (speed, speed_path, "kernels", "CSR, batch 64"),
    ],
)
def test_the_pictures_show_the_result_files(
    drawing: Callable[[], Drawing],
    committed: Callable[[], Path],
    stem: str,
    shown: str,
    tmp_path: Path,
) -> None:
    (drawn,) = save_drawing(drawing(), tmp_path, stem, suffixes=("svg",))
    # Not the bytes, which depend on the version of matplotlib.
    texts = [re.findall(r"<text[^>]*>(.*?)</text>", p.read_text()) for p in (drawn, committed())]
    assert texts[0] == texts[1]
    assert shown in texts[0]


def test_the_picture_of_the_densities_draws_the_means_of_the_record() -> None:
    (axes,) = densities().draw(520).axes
    drawn = [
        (float(x), list(LAYER_TYPES)[int(y)])
        for line in axes.lines
        if line.get_marker() == "o" and len(np.asarray(line.get_xdata())) == 1
        for x, y in np.asarray(line.get_xydata(), float)
    ]
    expected = []
    for method in ("prunus", "magnitude"):
        counts = [
            run["summary"]["layer_types"]
            for run in load(f"compare-{STUDY}")["runs"]
            if run["method"] == method
        ]
        assert len(counts) == 3
        assert set(counts[0]) == set(LAYER_TYPES)
        for name in LAYER_TYPES:
            each = [types[name]["nonzero"] / types[name]["prunable"] for types in counts]
            expected.append((sum(each) / 3, name))
    assert [name for _, name in drawn] == [name for _, name in expected]
    np.testing.assert_allclose([x for x, _ in drawn], [x for x, _ in expected])


def test_the_picture_of_the_speed_draws_the_rows_of_the_record() -> None:
    (axes,) = speed().draw(520).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    (row,) = (
        row
        for row in load("kernels")["rows"]
        if (row["layer"], row["shape"], row["batch"], row["sparsity"])
        == ("linear", [1024, 1024], 64, 0.95)
    )
    for name, label in (("sparse", "batch 64"), ("csr", "CSR, batch 64")):
        points = [
            (round(1 - x, 6), y) for x, y in np.asarray(lines[label].get_xydata(), float).tolist()
        ]
        assert (0.95, row["times_faster_than_dense"][name]) in points
