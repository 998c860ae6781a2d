"""Recipes from Python files and from installed packages, as the command runs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import torch

from prunus._inference.model_calls import ExampleInputs
from prunus._utils.checks import raise_problems
from prunus.errors import ArgumentError, RecipeError
from prunus.recipes.config import Config
from prunus.recipes.custom.batches import Loaders, load
from prunus.recipes.custom.definition import Definition, Function
from prunus.recipes.custom.importing import code_file, import_file
from prunus.recipes.custom.settings import base_settings
from prunus.recipes.custom.task import CustomTask, build_network
from prunus.recipes.custom.user_code import reporting_errors
from prunus.recipes.recipe import CodeFile, Recipe
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.tasks.exportable import ExportableNetwork
from prunus.recipes.tasks.task import Task

__all__ = ["GROUP", "installed_recipes", "recipe_from_entry_point", "recipe_from_file"]

GROUP = "prunus.recipes"
"""The group of entry points by which an installed package offers recipes."""

_LABELS = ("label", "labels", "target", "targets", "y")
"""Keys of a batch that a network is not called with."""


def recipe_from_file(path: Path) -> Recipe:
    """Return the recipe in a Python file, which is imported.

    Raises:
        RecipeError: It cannot be imported, or is not a recipe.
    """
    imported = import_file(path)
    definition = Definition.of(imported.module, imported.file.path)
    return _recipe(definition, definition.name, imported.file, str(path))


def installed_recipes() -> dict[str, EntryPoint]:
    """Return the entry points of installed packages that are recipes, by name; none is imported.

    Raises:
        RecipeError: Two packages have a recipe of the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise RecipeError(
                f"two installed packages have a recipe {point.name!r}, {other.value} and "
                f"{point.value}: uninstall one"
            )
    return found


def recipe_from_entry_point(point: EntryPoint) -> Recipe:
    """Return the recipe of an entry point, which is imported.

    Args:
        point: The entry point of a module, or of an object with the same names as attributes.

    Raises:
        RecipeError: It cannot be imported, or is not a recipe.
    """
    what = f"the recipe {point.name}, {point.value},"
    spec = None
    with reporting_errors(what, Path()):
        spec = importlib.util.find_spec(point.module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RecipeError(f"{what} is not in a Python file: install its package again")
    file = code_file(Path(spec.origin))
    with reporting_errors(what, file.path):
        module = point.load()
    return _recipe(Definition.of(module, file.path), point.name, file, None)


def _recipe(definition: Definition, name: str, file: CodeFile, path: str | None) -> Recipe:
    def prepare(config: Config, source: str | None, seed: int) -> Task:
        values = _values(config, source, seed)
        loaders = _load(definition, config, source, seed)
        return CustomTask(definition, config, loaders, values)

    return Recipe(
        name,
        definition.summary,
        definition.default_data,
        f"the contents that loaders() of {name} reads" if definition.takes_data else "",
        definition.config,
        prepare,
        lambda weights: _network(definition, name, weights),
        metrics=tuple(dict.fromkeys((definition.metric_name, "loss"))),
        file=file,
        path=path,
    )


def _values(config: Config, source: str | None, seed: int) -> dict[str, Any]:
    """Return the values of the arguments that a recipe's functions may take by name."""
    data = {} if source is None else {"data": source}
    return {**config.as_dict(), "seed": seed, **data}


def _load(definition: Definition, config: Config, source: str | None, seed: int) -> Loaders:
    if source is not None and not definition.takes_data:
        raise ArgumentError(
            f"{definition.loaders} takes no argument data: leave out --data {source}, or add the "
            "argument"
        )
    if source is None and definition.default_data is None:
        raise ArgumentError(f"{definition.loaders} needs data: pass --data FOLDER")
    if config.distillation and "teacher" not in definition.loss.keywords:
        raise ArgumentError(
            f"distillation={config.distillation:g} has no effect, because {definition.loss} takes "
            "no argument teacher: set distillation=0, or add the argument"
        )
    if definition.selection is not None:
        raise_problems(*_selection_problems(definition.selection, config))
    return load(definition, _values(config, source, seed), seed)


def _selection_problems(selection: Function, config: Config) -> Iterator[str]:
    """Yield the settings of the selection that the recipe's own one does not take."""
    for name in ("biases", "norms"):
        value = getattr(config, name)
        if name not in selection.keywords and value != base_settings()[name]:
            yield (
                f"{name}={str(value).lower()} has no effect, because {selection} takes no argument "
                f"{name}: leave it out, or add the argument"
            )


def _network(definition: Definition, name: str, weights: Path) -> ExportableNetwork:
    """Return the network for a file of a run, with the settings of the run beside the file."""
    directory = RunDirectory(weights.parent)
    config, source, seed = definition.config, None, 0
    if directory.config_file.is_file():
        identity = directory.read_config()
        if identity["recipe"] == name:
            source, seed = identity["data"], identity["seed"]
            config = type(config).from_dict(identity["config"], directory.config_file)
    values = _values(config, source, seed)

    def example_inputs(count: int) -> ExampleInputs:
        if definition.example_inputs is not None:
            inputs: ExampleInputs = definition.example_inputs(count, values=values)
            return inputs
        batch = _load(definition, config, source, seed).train.first()
        repeated: ExampleInputs = _repeated(_inputs_of(batch, definition), count)
        return repeated

    return ExportableNetwork(build_network(definition, values).eval(), example_inputs)


def _inputs_of(batch: Any, definition: Definition) -> Any:
    """Return the part of a training batch that the network is probably called with.

    Raises:
        RecipeError: There is no tensor in it.
    """
    if isinstance(batch, Mapping):
        inputs: Any = {key: value for key, value in batch.items() if key not in _LABELS}
        found = bool(inputs) and all(isinstance(v, torch.Tensor) for v in inputs.values())
    else:
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        found = isinstance(inputs, torch.Tensor)
    if not found:
        raise RecipeError(
            f"the inputs of the network cannot be found in a batch of {definition.name}: add "
            "example_inputs(batch_size), which returns inputs of the network"
        )
    return inputs


def _repeated(inputs: Any, count: int) -> Any:
    """Return inputs for a number of items, repeated where there are fewer."""
    if isinstance(inputs, Mapping):
        return {key: _repeated(value, count) for key, value in inputs.items()}
    return inputs[torch.arange(count) % len(inputs)]
