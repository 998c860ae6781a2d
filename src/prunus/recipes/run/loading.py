"""Loading of trained networks from the files of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.compaction import load_compact
from prunus.errors import PrunusError
from prunus.export.sparse_format import COMPACT_KEY, CSR_KEY, RECIPE_KEY
from prunus.export.sparse_reader import SparseFile
from prunus.recipes.registry import find_recipe
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.weight_file import load_weights
from prunus.recipes.tasks.exportable import ExportableNetwork
from prunus.recipes.tasks.task import Task

__all__ = ["file_metadata", "load_dense", "load_trained"]


def file_metadata(file: Path) -> dict[str, Any]:
    """Return the metadata of a file; "recipe" is the recipe that trained its network.

    Raises:
        PrunusError: It is damaged or not a safetensors file.
    """
    with SparseFile(file) as opened:
        return opened.metadata()


def load_trained(file: Path) -> ExportableNetwork:
    """Return the network in a file that a run wrote, or that was exported from a run.

    Args:
        file: ``model.safetensors``, or a sparse or compact file; for a language model it must be
            beside ``pretrained/`` of its run.

    Raises:
        PrunusError: The file is damaged or does not name a recipe, or ``pretrained/`` is missing.
    """
    metadata = file_metadata(file)
    if CSR_KEY in metadata:
        raise PrunusError(
            f"{file} holds compressed sparse rows, for other libraries: pass the file or the run "
            "that it was exported from"
        )
    if not isinstance(recipe := metadata.get(RECIPE_KEY), str):
        raise PrunusError(
            f"{file} does not name the recipe that trained it, so its network cannot be built: "
            "pass the directory of a run, or in Python load the file into your network with "
            "prunus.load_sparse(path, model), for prunus.bench.bench, prunus.compact and "
            "prunus.export.to_onnx"
        )
    with torch.random.fork_rng(devices=[]):
        network = find_recipe(recipe).network(file)
    if COMPACT_KEY in metadata:
        return dataclasses.replace(network, model=load_compact(file, network.model))
    load_weights(network.model, file)
    return network


def load_dense(path: Path) -> tuple[nn.Module, Task]:
    """Return the dense network of a run, and its task with the data.

    Args:
        path: The directory of the run.

    Raises:
        PrunusError: There is no run, its dense training has not ended, or its data are missing.
    """
    directory = RunDirectory(path)
    identity = directory.read_config()
    recipe = find_recipe(identity["recipe"])
    config = type(recipe.config).from_dict(identity["config"], directory.config_file)
    if not directory.dense_file.is_file():
        raise PrunusError(
            f"the run in {path} has not finished its dense training: resume it with --resume"
        )
    task = recipe.prepare(config, identity["data"], identity["seed"])
    with torch.random.fork_rng(devices=[]):
        network = task.network()
    return load_weights(network, directory.dense_file).eval(), task
