"""The tutorial on a recipe of one's user: its file and its commands, on a few images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from helpers.commands import prunus, settings, summary
from helpers.pages import DOCS, blocks
from recipes.images import noise, write

PAGE = (DOCS / "own-recipe.md").read_text()

# For the sizes of a test instead of those of CIFAR-10.
SMALL = {
    "run": settings(dense_epochs=1, epochs=2, batch_size=30, width=4),
    "bench": ["--batch", "2", "--threads", "1"],
    "sensitivity": ["--sparsities", "0.5"],
}


def recipe() -> str:
    (block,) = [block for block in blocks(PAGE) if block.language == "python"]
    return block.code


def test_the_file_has_at_most_40_lines() -> None:
    assert len(recipe().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.frameworks
def test_the_commands_of_the_tutorial_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 60), ("test", 20)):
        write(Path("cifar10"), split, noise(count, count, (32, 32, 3)), columns=("img", "label"))
    commands = [shlex.split(line) for line in re.findall(r"^    prunus (.+)$", PAGE, re.MULTILINE)]
    assert [command[0] for command in commands] == [
        *("new", "recipes", "run", "run", "export", "export", "bench", "sensitivity", "report"),
    ]
    for name, *arguments in commands:
        extra = [] if "--resume" in arguments else SMALL.get(name, [])
        outcome = prunus(name, *arguments, *extra)
        assert outcome.code == 0, outcome
        from_file = name in ("export", "bench", "sensitivity")
        assert (f"running the recipe {tmp_path / 'resnet.py'}\n" in outcome.out) == from_file
        if name == "new":
            Path("resnet.py").write_text(recipe())
    result = summary(Path("runs/resnet"))
    assert result["parameters"] == 292 + 952 + 3696 + 170  # the blocks and the linear layer
    assert result["compression_ratio"] >= 10
    names = {path.name for path in Path("runs/resnet").iterdir()}
    assert {"model.compact.safetensors", "model.onnx", "bench.json", "report.html"} <= names
