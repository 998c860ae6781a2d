"""The loss that a recipe file's network is measured by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunus.recipes.custom.recipes import recipe_from_file

SOURCE = """
import torch
from torch import nn

settings = dict(ratio=3)


def network():
    return nn.Linear(1, 1)


def loaders(batch_size):
    validation = [torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0]])]
    return [torch.ones(2, 1)], validation, [torch.tensor([[7.0]])]


def loss(model, batch):
    return VALUE + 0 * model(batch).sum()
"""


def task_of(path: Path, value: str) -> Any:
    path.write_text(SOURCE.replace("VALUE", value))
    recipe = recipe_from_file(path)
    return recipe.prepare(recipe.config, None, 0)


def test_the_loss_is_the_mean_over_the_items_of_unequal_batches(tmp_path: Path) -> None:
    task = task_of(tmp_path / "own.py", "batch.mean() + 100.0 * model.training")
    model = task.network()
    assert task.validate(model).loss == pytest.approx((1 + 2 + 3 + 10) / 4)
    assert task.validate(model).metric == task.validate(model).loss
    assert task.test(model).loss == pytest.approx(7)
    assert model.training


def test_a_network_has_the_same_loss_each_time(tmp_path: Path) -> None:
    task = task_of(tmp_path / "own.py", "torch.rand(())")
    model = task.network()
    assert task.validate(model) == task.validate(model)
