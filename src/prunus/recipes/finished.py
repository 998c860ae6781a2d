"""Taking up what a run has left behind: its network, with its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from prunus.compaction import load_compact
from prunus.errors import UserError
from prunus.export.sparse_file import SparseFile
from prunus.recipes.network import Network
from prunus.recipes.recipe import find
from prunus.recipes.weights import load_into

__all__ = ["finished", "recipe_of"]


def recipe_of(file: Path) -> str | None:
    """Return the recipe by which the network in a file was trained; None if it does not say.

    Raises:
        UserError: It is damaged or no safetensors file.
    """
    with SparseFile(file) as opened:
        recipe = opened.about.get("recipe")
    return recipe if isinstance(recipe, str) else None


def finished(file: Path) -> Network:
    """Return the network in a file that a run has written, or that was exported from one.

    Args:
        file: ``model.safetensors``, or a sparse or compact file; that of a language model beside
            the ``pretrained/`` of its run.

    Raises:
        UserError: It is not of a recipe, damaged, or its run's directory is not complete.
    """
    recipe = recipe_of(file)
    if recipe is None:
        raise UserError(
            f"{file} does not say by which recipe it was trained, so that its network is not known "
            "here: give the directory of a run, or call prunus from Python, where your network is"
        )
    with torch.random.fork_rng(devices=[]):
        network = find(recipe).network(file)
    with SparseFile(file) as opened:
        small = "compact" in opened.about
    if small:
        return dataclasses.replace(network, model=load_compact(file, network.model))
    load_into(network.model, file)
    return network
