"""The recipes: those built in, with settings that are known to work, and the lookup of any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prunus._utils.system_info import has_bfloat16
from prunus.errors import ArgumentError, PrunusError, nearest, unknown_name
from prunus.recipes.custom.recipes import (
    installed_recipes,
    recipe_from_entry_point,
    recipe_from_file,
)
from prunus.recipes.data.images import load_digits, load_hub_images
from prunus.recipes.data.texts import TURN_SEPARATOR, load_dialogues, load_texts, load_translations
from prunus.recipes.recipe import Recipe
from prunus.recipes.tasks.architectures import lenet5, lenet300, perceptron
from prunus.recipes.tasks.classification import Classification, ImageConfig
from prunus.recipes.tasks.exportable import image_network
from prunus.recipes.tasks.language_model import LanguageModel, LanguageModelConfig
from prunus.recipes.tasks.residual_networks import cifar_resnet
from prunus.recipes.tasks.sequence_to_sequence import SequenceConfig, SequenceToSequence
from prunus.recipes.tasks.task import Task

__all__ = ["RECIPES", "find_recipe"]


_FEW_WEIGHTS = 1
"""The number of threads for perceptrons of up to 300,000 weights.

With one thread and with two, on an AMD EPYC with two cores: the shortest step of a dense training
takes 0.28 and 0.40 ms (digits), 1.42 and 1.95 ms (mnist-lenet300); beside eight other processes, on
average 2 and 405 ms, 9 and 676 ms, because threads wait for each other.
"""


def _metrics(task: type[Task]) -> tuple[str, ...]:
    """Return the names of the metrics that a task's evaluations have."""
    return (task.metric, "loss", *task.extra_metrics)


def _digits_recipe(summary: str, config: ImageConfig) -> Recipe:
    build = partial(perceptron, 64, 300, 100, 10)

    def prepare(config: ImageConfig, source: str | None, seed: int) -> Task:
        if source is not None:
            raise PrunusError(f"the recipe digits has embedded data: leave out --data {source}")
        return Classification(config, load_digits(config.validation, seed), build)

    return Recipe(
        "digits",
        summary,
        "embedded",
        "",
        config,
        prepare,
        lambda _: image_network(build, (1, 8, 8)),
        # The smallest validation loss at a ratio of 50 of 0.003, 0.01, 0.03 and 0.1 for l2, and of
        # 0.0003, 0.001, 0.003 and 0.01 for l1, among those that reach the ratio with both seeds.
        strengths={"l2": 0.01, "l1": 0.0003},
        threads=_FEW_WEIGHTS,
        metrics=_metrics(Classification),
    )


def _images_recipe(
    name: str,
    summary: str,
    data: str,
    config: ImageConfig,
    build: Callable[[], nn.Module],
    *,
    size: tuple[int, int] = (28, 28),
    color: bool = False,
    columns: tuple[str, str] = ("image", "label"),
    strengths: Mapping[str, float] | None = None,
    threads: int | None = None,
) -> Recipe:
    def prepare(config: ImageConfig, source: str | None, seed: int) -> Task:
        images = load_hub_images(
            source or data,
            size=size,
            color=color,
            columns=columns,
            validation=config.validation,
            seed=seed,
        )
        return Classification(config, images, build)

    return Recipe(
        name,
        summary,
        data,
        f"parquet files for train and test with the columns {columns[0]}, "
        f"{'in color' if color else 'grey'} and of {size[0]}×{size[1]} pixels, and {columns[1]}",
        config,
        prepare,
        lambda _: image_network(build, (3 if color else 1, *size)),
        strengths=strengths or {},
        metrics=_metrics(Classification),
        threads=threads,
    )


def _cifar_recipe(depth: int) -> Recipe:
    return _images_recipe(
        f"cifar10-resnet{depth}",
        f"ResNet-{depth} on CIFAR-10, to 1/20 of its parameters",
        _CIFAR10,
        _CIFAR,
        partial(cifar_resnet, depth),
        size=(32, 32),
        color=True,
        columns=("img", "label"),
    )


def _without_seed(
    prepare: Callable[[Any, str | None], Task],
) -> Callable[[Any, str | None, int], Task]:
    """Return a function that accepts a seed and does not pass it on.

    For data with a published validation split, so that none is drawn.
    """
    return lambda config, source, _: prepare(config, source)


def _translation(
    config: SequenceConfig,
    source: str | None,
    *,
    name: str,
    languages: tuple[str, str],
    subset: str | None = None,
) -> Task:
    return SequenceToSequence(config, load_translations(source or name, languages, name=subset))


def _dialogue(
    config: SequenceConfig,
    source: str | None,
    *,
    name: str | None = None,
    subset: str | None = None,
) -> Task:
    source = source or name
    if source is None:
        raise PrunusError(
            f"Taskmaster-4 is not on the Hub: pass a folder with --data FOLDER, with {_DIALOGUES}; "
            "the dialogues are at github.com/google-research-datasets/Taskmaster"
        )
    return SequenceToSequence(config, load_dialogues(source, name=subset), extra=[TURN_SEPARATOR])


def _running_text(config: LanguageModelConfig, source: str | None, *, name: str) -> Task:
    return LanguageModel(config, load_texts(source or name))


_TRANSLATIONS = (
    "parquet files for train, validation and test with a column for each language, en and de, or "
    "one named translation that holds both"
)
_DIALOGUES = (
    "parquet files for train, validation and test with the columns speaker and text, a list each, "
    "or one named utterances, a list of records with both; a row per dialogue"
)
_TEXTS = "parquet or text files for train, validation and test with the column text"

_MNIST = "ylecun/mnist"
_CIFAR10 = "uoft-cs/cifar10"
_FASHION = "zalando-datasets/fashion_mnist"
_MULTI30K = "bentrevett/multi30k"
_WMT14 = "wmt/wmt14"
_TASKMASTER1 = "google-research-datasets/taskmaster1"
_SHAKESPEARE = "karpathy/tiny_shakespeare"

_LENET5 = ImageConfig(
    dense_epochs=10,
    epochs=50,
    batch_size=100,
    dense_lr=0.05,
    lr=0.05,
    ratio=310.2,
    initial_weights="random",
    shift=1,
)

# The dense training is that of He et al., arXiv 1512.03385, section 4.2, with Nesterov momentum,
# the weight decay of Zagoruyko & Komodakis, arXiv 1605.07146, and a warm-up and a cosine instead of
# steps of the learning rate.
_CIFAR = ImageConfig(
    dense_epochs=40,
    epochs=40,
    batch_size=128,
    validation=0.1,
    dense_lr=0.1,
    lr=0.05,
    weight_decay=5e-4,
    ratio=20.0,
    autocast=has_bfloat16(),
    shift=4,
    flip=True,
    channels_last=True,
)

# The settings that the paper's two language tasks share.
_PAPER: dict[str, Any] = {
    "dense_lr": 5e-4,
    "lr": 5e-4,
    "accumulation": 3,
    "beta1": 0.85,
    "beta2": 0.997,
    "penalty": "relevance",
    "apply": "gradient",
    "strength": 1e-5,
    "strength_schedule": "linear",
    "alpha": 1.0,
    "relative": False,
    "schedule": "iterative",
    "ratio": 0.0,
    "score": "magnitude",
    "norms": True,
}

# The settings that the other language recipes share. Sparse networks train without dropout, because
# they have few weights to overfit with.
_TUNED: dict[str, Any] = {
    "max_grad_norm": 1.0,
    "pruning_dropout": 0.0,
    "norms": True,
}

_ALL = (
    _digits_recipe(
        "a small perceptron on scikit-learn's 8×8 digits, with iterative pruning",
        ImageConfig(
            dense_epochs=40,
            epochs=100,
            batch_size=32,
            validation=0.2,
            dense_lr=0.05,
            lr=0.05,
            schedule="iterative",
            fraction=0.0,
            floor="dense-0.01",
            ratio=25.0,
        ),
    ),
    _images_recipe(
        "mnist-lenet300",
        "LeNet-300-100 on MNIST, to 1/100 of its parameters",
        _MNIST,
        ImageConfig(
            dense_epochs=15,
            epochs=60,
            batch_size=100,
            dense_lr=0.1,
            lr=0.1,
            schedule_end=0.75,
            ratio=100.0,
            initial_weights="random",
            shift=1,
        ),
        lenet300,
        # The smallest validation error of 0.0005, 0.0015, 0.005, 0.015 and 0.05 for l2, and of
        # 0.0003, 0.001 and 0.003 for l1, with a seed that no figure reports.
        strengths={"l2": 0.0015, "l1": 0.001},
        threads=_FEW_WEIGHTS,
    ),
    _images_recipe(
        "mnist-lenet5",
        "LeNet-5 (Caffe widths) on MNIST, to 1/310 of its parameters",
        _MNIST,
        _LENET5,
        lenet5,
    ),
    _images_recipe(
        "fashion-lenet5",
        "LeNet-5 (Caffe widths) on Fashion-MNIST, to 1/50 of its parameters",
        _FASHION,
        _LENET5.with_settings(["ratio=50"]),
        lenet5,
    ),
    _cifar_recipe(20),
    _cifar_recipe(32),
    Recipe(
        "multi30k-translation",
        "a small BART from English to German on Multi30k's captions, to 1/10 of its parameters",
        _MULTI30K,
        _TRANSLATIONS,
        SequenceConfig(
            **_TUNED,
            dense_epochs=10,
            epochs=12,
            batch_size=32,
            dense_lr=1.5e-3,
            lr=3e-3,
            vocabulary=4000,
            length=100,
            width=192,
            layers=2,
            heads=4,
            feed_forward=768,
            dropout=0.1,
            label_smoothing=0.1,
            validation_pairs=500,
            sequence_distillation=True,
            schedule_end=0.4,
            ratio=10.0,
        ),
        _without_seed(partial(_translation, name=_MULTI30K, languages=("en", "de"))),
        strengths={"l2": 0.002},
        metrics=_metrics(SequenceToSequence),
    ),
    Recipe(
        "taskmaster-dialogue",
        "the paper's dialogue model on Taskmaster-4, to 1/10 of its parameters",
        None,
        _DIALOGUES,
        SequenceConfig(
            **_TUNED,
            dense_epochs=10,
            epochs=8,
            batch_size=16,
            dense_lr=1e-3,
            lr=2e-3,
            vocabulary=2000,
            length=176,
            width=256,
            layers=2,
            heads=4,
            feed_forward=256,
            dropout=0.2,
            label_smoothing=0.1,
            beams=6,
            length_penalty=1.2,
            distillation=0.5,
            schedule_end=0.5,
            ratio=10.0,
        ),
        _without_seed(_dialogue),
        # That of Tiny Shakespeare, transferred by the sum of a run's learning rates, by which it is
        # multiplied in the course of the run.
        strengths={"l2": 0.03},
        metrics=_metrics(SequenceToSequence),
    ),
    Recipe(
        "shakespeare-lm",
        "a small GPT-2 on Tiny Shakespeare, to 1/5 of its parameters",
        _SHAKESPEARE,
        _TEXTS,
        LanguageModelConfig(
            **_TUNED,
            dense_epochs=8,
            epochs=6,
            batch_size=8,
            dense_lr=2e-3,
            lr=2e-3,
            vocabulary=1000,
            length=128,
            width=128,
            layers=4,
            heads=4,
            feed_forward=512,
            dropout=0.1,
            distillation=0.5,
            schedule_end=0.5,
            ratio=5.0,
        ),
        _without_seed(partial(_running_text, name=_SHAKESPEARE)),
        strengths={"l2": 0.03},
        metrics=_metrics(LanguageModel),
    ),
    Recipe(
        "wmt14-translation",
        "the paper's Transformer from English to German on WMT14, with the paper's settings",
        _WMT14,
        _TRANSLATIONS,
        SequenceConfig(
            **_PAPER,
            dense_epochs=10,
            epochs=20,
            batch_size=128,
            vocabulary=32000,
            length=256,
            width=512,
            layers=6,
            heads=8,
            feed_forward=2048,
            dropout=0.1,
            label_smoothing=0.1,
            beams=4,
            length_penalty=0.6,
            validation_pairs=500,
            fraction=0.1,
            floor=27.2,
        ),
        _without_seed(partial(_translation, name=_WMT14, languages=("en", "de"), subset="de-en")),
        metrics=_metrics(SequenceToSequence),
    ),
    Recipe(
        "taskmaster1-dialogue",
        "the paper's dialogue model on Taskmaster-1, with the paper's settings",
        _TASKMASTER1,
        _DIALOGUES,
        SequenceConfig(
            **_PAPER,
            dense_epochs=20,
            epochs=40,
            batch_size=64,
            vocabulary=8000,
            length=256,
            width=256,
            layers=2,
            heads=4,
            feed_forward=256,
            dropout=0.2,
            beams=6,
            length_penalty=1.2,
            fraction=0.2,
            floor=6.03,
        ),
        _without_seed(partial(_dialogue, name=_TASKMASTER1, subset="one_person_dialogs")),
        metrics=_metrics(SequenceToSequence),
    ),
)

RECIPES = {recipe.name: recipe for recipe in _ALL}


def find_recipe(name: str) -> Recipe:
    """Return a recipe, the only way in which the command finds one.

    Args:
        name: The name of a built-in recipe or, else, of an entry point of an installed package, or
            the path of a Python file: it ends in ``.py`` or contains a ``/``. The last two are
            imported.

    Raises:
        ArgumentError: There is none of this name, or no such file.
        RecipeError: The file or the module cannot be imported, or is not a recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix == ".py" or "/" in name:
        if not path.is_file():
            raise ArgumentError(_no_file(path))
        return recipe_from_file(path)
    installed = installed_recipes()
    if name in installed:
        return recipe_from_entry_point(installed[name])
    beside = path.with_name(f"{path.name}.py") if path.name else path
    if beside.is_file():
        raise ArgumentError(f"there is no recipe {name!r}. Did you mean the file {beside}?")
    raise ArgumentError(unknown_name("recipe", name, [*RECIPES, *installed]))


def _no_file(path: Path) -> str:
    """Return the message for a file that does not exist, with the recipes that may be meant."""
    if path.is_dir():
        return f"the recipe {path} is a folder: pass a Python file or the name of a recipe"
    files = {file.stem: str(file) for file in sorted(path.parent.glob("*.py"))}
    near = nearest(path.stem, [*files, *RECIPES], most=1)
    hint = f"Did you mean {files.get(near[0], near[0])}? " if near else ""
    return f"there is no file {path}. {hint}`prunus new {path}` writes a recipe to start from"
