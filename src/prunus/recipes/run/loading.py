"""Taking up what a run has left behind: its network, with its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from prunus.compaction import load_compact
from prunus.errors import PrunusError
from prunus.export.sparse_reader import SparseFile
from prunus.recipes.registry import find_recipe
from prunus.recipes.tasks.exportable import ExportableNetwork
from prunus.recipes.run.weight_file import load_weights

__all__ = ["file_metadata", "load_trained"]


def file_metadata(file: Path) -> dict[str, Any]:
    """Return what a file says about its network; "recipe" is that by which it was trained.

    Raises:
        PrunusError: It is damaged or no safetensors file.
    """
    with SparseFile(file) as opened:
        return opened.metadata()


def load_trained(file: Path) -> ExportableNetwork:
    """Return the network in a file that a run has written, or that was exported from one.

    Args:
        file: ``model.safetensors``, or a sparse or compact file; that of a language model beside
            the ``pretrained/`` of its run.

    Raises:
        PrunusError: It is not of a recipe, damaged, or its run's directory is not complete.
    """
    said = file_metadata(file)
    if "csr" in said:
        raise PrunusError(
            f"{file} holds compressed rows, for other libraries: give the file or the run that it "
            "was exported from"
        )
    if not isinstance(recipe := said.get("recipe"), str):
        raise PrunusError(
            f"{file} does not say by which recipe it was trained, so that its network is not known "
            "here: give the directory of a run, or call prunus from Python, where your network is"
        )
    with torch.random.fork_rng(devices=[]):
        network = find_recipe(recipe).network(file)
    if "compact" in said:
        return dataclasses.replace(network, model=load_compact(file, network.model))
    load_weights(network.model, file)
    return network
