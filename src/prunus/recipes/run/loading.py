"""Loading of trained networks from the files of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from prunus._inference.model_calls import ExampleInputs
from prunus.compaction import load_compact
from prunus.constraint import Mode
from prunus.errors import PrunusError
from prunus.export.sparse_format import COMPACT_KEY, CSR_KEY, RECIPE_KEY
from prunus.export.sparse_reader import SparseFile
from prunus.recipes.custom.importing import code_file
from prunus.recipes.recipe import Recipe
from prunus.recipes.registry import find_recipe
from prunus.recipes.run.directory import RunDirectory, recipe_digest
from prunus.recipes.run.weight_file import load_weights
from prunus.recipes.tasks.exportable import ExportableNetwork
from prunus.recipes.tasks.task import Task

__all__ = ["DenseRun", "calibration_inputs", "file_metadata", "load_dense", "load_trained"]


def file_metadata(file: Path) -> dict[str, Any]:
    """Return the metadata of a file; "recipe" is the recipe that trained its network.

    Raises:
        PrunusError: It is damaged or not a safetensors file.
    """
    with SparseFile(file) as opened:
        return opened.metadata()


def load_trained(
    file: Path, recipe: str | None = None, report: Callable[[str], None] = lambda _: None
) -> ExportableNetwork:
    """Return the network in a file that a run wrote, or that was exported from a run.

    Args:
        file: ``model.safetensors``, or a sparse or compact file; for a language model it must be
            beside ``pretrained/`` of its run.
        recipe: The recipe that trained it, as :func:`~prunus.recipes.registry.find_recipe` accepts
            it. Default None: the one that the file names. A Python file is then found by the
            config.json beside the file, and run only if it has not changed since.
        report: Receives a message before a Python file is run, or if it has changed. Default: no
            call.

    Raises:
        PrunusError: The file is damaged or does not name a recipe, the recipe's file is missing or
            has changed, or ``pretrained/`` is missing.
    """
    metadata = file_metadata(file)
    if CSR_KEY in metadata:
        raise PrunusError(
            f"{file} holds compressed sparse rows, for other libraries: pass the file or the run "
            "that it was exported from"
        )
    if not isinstance(name := metadata.get(RECIPE_KEY), str):
        raise PrunusError(
            f"{file} does not name the recipe that trained it, so its network cannot be built: "
            "pass the directory of a run, or in Python load the file into your network with "
            "prunus.load_sparse(path, model), for prunus.bench.bench, prunus.compact and "
            "prunus.export.to_onnx"
        )
    directory = RunDirectory(file.parent)
    identity = directory.read_config() if directory.config_file.is_file() else {}
    if identity.get("recipe") != name:  # the file was moved to another run
        identity = {"recipe": name}
    found = _recipe_of(identity, directory, recipe, report)
    with torch.random.fork_rng(devices=[]):
        network = found.network(file)
    if COMPACT_KEY in metadata:
        return dataclasses.replace(network, model=load_compact(file, network.model))
    load_weights(network.model, file)
    return network


class DenseRun(NamedTuple):
    """The dense network of a run.

    Attributes:
        network: The network in evaluation mode.
        task: The run's task, with the data.
        mode: "max" if larger metrics of the task are better, else "min".
    """

    network: nn.Module
    task: Task
    mode: Mode


def load_dense(
    path: Path, recipe: str | None = None, report: Callable[[str], None] = lambda _: None
) -> DenseRun:
    """Return the dense network of a run, and its task with the data.

    Args:
        path: The directory of the run.
        recipe: The recipe of the run. Default None: the one that the run names, as in
            :func:`load_trained`.
        report: Receives a message before a Python file is run, or if it has changed. Default: no
            call.

    Raises:
        PrunusError: There is no run, its dense training has not ended, its recipe's file is missing
            or has changed, or its data are missing.
    """
    directory = RunDirectory(path)
    identity = directory.read_config()
    if not directory.dense_file.is_file():
        raise PrunusError(
            f"the run in {path} has not finished its dense training: resume it with --resume"
        )
    found = _recipe_of(identity, directory, recipe, report)
    config = type(found.config).from_dict(identity["config"], directory.config_file)
    task = found.prepare(config, identity["data"], identity["seed"])
    with torch.random.fork_rng(devices=[]):
        network = task.network()
    return DenseRun(load_weights(network, directory.dense_file).eval(), task, config.mode)


def calibration_inputs(file: Path, recipe: str | None = None) -> Sequence[ExampleInputs]:
    """Return batches of training inputs of the run that a file is in, for its network in int8.

    Args:
        file: A file that names the recipe of its network.
        recipe: The recipe, as for :func:`load_dense`.

    Returns:
        The batches; none if the file is not in the directory of its run, or its task has none.

    Raises:
        PrunusError: The recipe or the data of the run are missing.
    """
    directory = RunDirectory(file.parent)
    if not directory.config_file.is_file():
        return ()
    if directory.read_config()["recipe"] != file_metadata(file).get(RECIPE_KEY):
        return ()
    return load_dense(file.parent, recipe).task.calibration_inputs()


def _recipe_of(
    identity: Mapping[str, Any],
    directory: RunDirectory,
    chosen: str | None,
    report: Callable[[str], None],
) -> Recipe:
    """Return the recipe of a run.

    Args:
        identity: The identity of the run, or the name of its recipe alone.
        directory: Its directory.
        chosen: The recipe that the user passed; None for that of the run.
        report: Receives messages.

    Raises:
        PrunusError: It cannot be found, or is a Python file that may not be run without being
            passed by the user: one that changed since, or that the directory of the run brings.
    """
    name, digest = identity["recipe"], recipe_digest(identity)
    if chosen is not None:
        recipe = find_recipe(chosen)
        if recipe.file is None and recipe.name != name:
            raise PrunusError(f"{directory.path} is of the recipe {name}: choose another --recipe")
        if recipe.file is not None and recipe.file.sha256 != digest:
            report(f"{chosen} is not the file that trained this network, or has changed since")
        return recipe
    if not _is_path(name):  # built in, or of an installed package
        recipe = find_recipe(name)
        if digest is not None and (recipe.file is None or recipe.file.sha256 != digest):
            report(f"the recipe {name} has changed since it trained this network")
        return recipe
    pass_it = "pass it with --recipe FILE"
    if digest is None:
        raise PrunusError(
            f"the network in {directory.path} was trained by the Python file {name}, of which "
            f"nothing but the name is known here: {pass_it}"
        )
    path = Path(identity["recipe_file"]["path"])
    # A directory may come from elsewhere: no code that it brings is run unless the user names it.
    if not path.is_absolute() or path.resolve().is_relative_to(directory.path.resolve()):
        raise PrunusError(
            f"the recipe {path} is part of the directory of the run, whose code is not run by "
            f"itself: if you trust it, {pass_it}"
        )
    if not path.is_file():
        raise PrunusError(f"the recipe {path} of this run does not exist: {pass_it}")
    if code_file(path).sha256 != digest:
        raise PrunusError(
            f"the recipe {path} has changed since the run began: to use it as it is now, {pass_it}"
        )
    report(f"running the recipe {path}")
    return find_recipe(str(path))


def _is_path(name: str) -> bool:
    """Return whether a name of a recipe is that of a Python file."""
    return name.endswith(".py") or "/" in name
