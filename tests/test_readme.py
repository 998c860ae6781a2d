"""README: its code blocks, commands and figures."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.figures.pages import render
from benchmarks.figures.pictures import STUDY, picture, picture_path
from prunus.recipes.registry import RECIPES, find_recipe
from prunus.report.figures.drawing import save_drawing

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


def run_loop(before: str = "", after: str = "") -> tuple[dict[str, Any], list[int]]:
    """Run the loop, with a replacement; return its names, and the epochs that it trains for."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    trained: list[int] = []
    names: dict[str, Any] = {"accuracy": 0.985, "trained": trained}
    assert before in block
    assert block.count("    ...  ") == 1
    block = block.replace(before, after) if before else block
    exec(block.replace("    ...  ", f"    {_TRAIN}; trained.append(epoch)  "), names)
    return names, trained


_TRAIN = "model(torch.ones(2, 64)).square().mean().backward(); optimizer.step()"


def test_the_commands_name_recipes_and_settings_that_exist() -> None:
    lines = re.findall(r"^    prunus run (.*)$", README.read_text(), flags=re.MULTILINE)
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


def test_the_picture_shows_the_result_file(tmp_path: Path) -> None:
    (drawn,) = save_drawing(picture(), tmp_path, STUDY, suffixes=("svg",))
    # Not the bytes, which depend on the version of matplotlib.
    texts = [re.findall(r"<text[^>]*>(.*?)</text>", p.read_text()) for p in (drawn, picture_path())]
    assert texts[0] == texts[1]
    assert "prunus" in texts[0]
