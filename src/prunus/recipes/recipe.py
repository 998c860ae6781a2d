"""The recipes: a task, a network, and settings that are known to work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from prunus.errors import UserError, listing, nearest
from prunus.recipes.classification import Classification, ImageConfig
from prunus.recipes.config import Config
from prunus.recipes.data import digits, hub_images
from prunus.recipes.models import lenet5, lenet300, perceptron
from prunus.recipes.task import Task

__all__ = ["RECIPES", "Recipe", "find"]


@dataclass(frozen=True)
class Recipe:
    """One entry of the recipe book.

    Attributes:
        name: What the command calls it.
        summary: One line on what it does.
        data: Where its data come from by default.
        config: Its settings.
        prepare: Loads the data, given the settings, what the user gave as --data (or None), and the
            seed.
    """

    name: str
    summary: str
    data: str
    config: Config
    prepare: Callable[[Any, str | None, int], Task]


def _digits(config: ImageConfig, source: str | None, seed: int) -> Task:
    if source is not None:
        raise UserError(f"the recipe digits has its data embedded: leave out --data {source}")
    images = digits(config.validation, seed)
    return Classification(config, images, partial(perceptron, 64, 300, 100, 10))


def _images(
    config: ImageConfig, source: str | None, seed: int, *, name: str, build: Callable[[], nn.Module]
) -> Task:
    images = hub_images(source or name, size=(28, 28), validation=config.validation, seed=seed)
    return Classification(config, images, build)


_MNIST = "ylecun/mnist"
_FASHION = "zalando-datasets/fashion_mnist"

_LENET5 = ImageConfig(
    dense_epochs=10,
    epochs=50,
    batch_size=100,
    dense_lr=0.05,
    lr=0.05,
    strength=0.05,
    alpha=0.05,
    ratio=200.1,
    start="fresh",
    shift=1,
)

_BOOK = (
    Recipe(
        "digits",
        "a small perceptron on scikit-learn's 8×8 digits, by the paper's iterative pruning",
        "embedded",
        ImageConfig(
            dense_epochs=40,
            epochs=100,
            batch_size=32,
            validation=0.2,
            dense_lr=0.05,
            lr=0.05,
            strength=0.01,
            schedule="iterative",
            fraction=0.1,
            floor="dense-0.01",
            ratio=25.0,
        ),
        _digits,
    ),
    Recipe(
        "mnist-lenet300",
        "LeNet-300-100 on MNIST, to 1/67 of its parameters",
        _MNIST,
        ImageConfig(
            dense_epochs=15,
            epochs=60,
            batch_size=100,
            dense_lr=0.1,
            lr=0.1,
            strength=0.015,
            alpha=0.2,
            end=0.75,
            ratio=67.0,
            start="fresh",
            shift=1,
        ),
        partial(_images, name=_MNIST, build=lenet300),
    ),
    Recipe(
        "mnist-lenet5",
        "LeNet-5 (Caffe widths) on MNIST, to 1/200 of its parameters",
        _MNIST,
        _LENET5,
        partial(_images, name=_MNIST, build=lenet5),
    ),
    Recipe(
        "fashion-lenet5",
        "LeNet-5 (Caffe widths) on Fashion-MNIST, to 1/50 of its parameters",
        _FASHION,
        _LENET5.changed(["ratio=50"]),
        partial(_images, name=_FASHION, build=lenet5),
    ),
)

RECIPES = {recipe.name: recipe for recipe in _BOOK}


def find(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        UserError: There is none.
    """
    if name not in RECIPES:
        near = nearest(name, RECIPES)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"there is no recipe {name!r}; {hint}The recipes are {listing(list(RECIPES))}"
        )
    return RECIPES[name]
