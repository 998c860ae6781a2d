"""Directories of runs that were never trained, and the content of pages about them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prunus._utils.files import save_tree
from prunus.recipes.registry import find_recipe
from prunus.recipes.run.directory import RunDirectory

VOID = ("meta", "link", "br", "img")
"""Elements of HTML without an end tag."""


def epoch(phase: str, number: int, **changes: Any) -> dict[str, Any]:
    """Return a line of metrics."""
    line = {
        "phase": phase,
        "epoch": number,
        "loss": 0.5,
        "validation_loss": 0.6,
        "validation": 0.97,
        "extra_metrics": {},
        "floor": None,
        "sparsity": 0.0,
        "removed": 0,
        "penalty": None,
        "predicted_cost": None,
        "seconds": 1.0,
        "lr": 0.05,
        "restored": False,
    }
    return {**line, **changes}


HISTORY = [
    epoch("dense", 1, validation=0.5),
    epoch("dense", 2, validation=0.96),
    epoch("dense", 3, validation=0.98),
    epoch("prune", 1, validation=0.97, floor=0.965, removed=10, predicted_cost=0.25),
    epoch("prune", 2, validation=0.95, floor=0.965, sparsity=0.25),
    epoch("prune", 3, validation=0.975, floor=0.965, sparsity=0.75),
]
"""A history with a floor, removals and a last epoch that is delivered."""


def weights() -> dict[str, torch.Tensor]:
    """Return the tensors of a small network, of which the first layer reads images of 4×4."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(6, 16, generator=generator)
    first[:, 8:] = 0
    second = torch.randn(2, 6, generator=generator)
    second[0] = 0
    return {"1.weight": first, "1.bias": torch.ones(6), "3.weight": second}


def summary(**changes: Any) -> dict[str, Any]:
    """Return a summary that fits :data:`HISTORY` and :func:`weights`."""
    splits = {"validation": 0.98, "validation_loss": 0.6, "test": 0.9722, "test_loss": 0.7}
    content = {
        "recipe": "digits",
        "seed": 7,
        "method": "relevance (decoupled), iterative, fisher",
        "method_name": "prunus",
        "parameters": 114,
        "nonzero": 60,
        "sparsity": 0.75,
        "compression_ratio": 1.9,
        "multiply_adds": {"dense": 108, "sparse": 54},
        "metric": {"name": "accuracy", "mode": "max"},
        "dense": splits,
        "sparse": {**splits, "validation": 0.975, "test": 0.9638},
        "layer_types": {"linear": {"prunable": 108, "nonzero": 54}},
        "seconds": {"dense": 3.0, "prune": 4.0},
        "bytes": {"dense": 700, "sparse": 700},
        "environment": {"prunus": "0.1.0", "torch": "2.13.0", "processor": "Planted"},
    }
    return {**content, **changes}


def sample_run(
    path: Path,
    *,
    recipe: str = "digits",
    history: list[dict[str, Any]] = HISTORY,
    finished: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write the directory of a run, which is not finished without a summary.

    An unfinished run has its tensors, if there are any, in a checkpoint.
    """
    path.mkdir(parents=True)
    directory = RunDirectory(path)
    config = {**find_recipe("digits").config.as_dict(), **(settings or {})}
    identity = {"recipe": recipe, "seed": 7, "data": None, "dense": None, "config": config}
    directory.write_config(identity)
    directory.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in history))
    if finished is not None:
        directory.write_summary(finished)
        save_file(tensors or weights(), directory.model_file)
    elif tensors is not None:
        directory.checkpoints.folder.mkdir()
        save_tree(directory.checkpoints.last, {"model": tensors})
    return path


@dataclass
class Page(HTMLParser):
    """The content of a page.

    Attributes:
        tags: The elements in their order, with their attributes.
        text: The text outside scripts and style sheets.
        style: The style sheets.
        open_tags: The elements that are not closed.
        mistakes: End tags that close no open element.
    """

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    style: str = ""
    open_tags: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open_tags and self.open_tags[-1] == tag:
            self.open_tags.pop()
        else:
            self.mistakes.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open_tags and self.open_tags[-1] == "style":
            self.style += data
        else:
            self.text += f" {data}"

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(path: Path) -> Page:
    """Return the content of a page, after checking that its elements are nested correctly."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert (page.open_tags, page.mistakes) == ([], [])
    page.text = " ".join(page.text.split())
    return page
