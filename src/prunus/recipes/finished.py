"""Taking up what a run has left behind: its network, with its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from prunus.compaction import load_compact
from prunus.errors import UserError
from prunus.export.sparse_file import SparseFile
from prunus.recipes.network import Network
from prunus.recipes.recipe import find
from prunus.recipes.weights import load_into

__all__ = ["about", "finished"]


def about(file: Path) -> dict[str, Any]:
    """Return what a file says about its network; "recipe" is that by which it was trained.

    Raises:
        UserError: It is damaged or no safetensors file.
    """
    with SparseFile(file) as opened:
        return dict(opened.about)


def finished(file: Path) -> Network:
    """Return the network in a file that a run has written, or that was exported from one.

    Args:
        file: ``model.safetensors``, or a sparse or compact file; that of a language model beside
            the ``pretrained/`` of its run.

    Raises:
        UserError: It is not of a recipe, damaged, or its run's directory is not complete.
    """
    said = about(file)
    if "csr" in said:
        raise UserError(
            f"{file} holds compressed rows, for other libraries: give the file or the run that it "
            "was exported from"
        )
    if not isinstance(recipe := said.get("recipe"), str):
        raise UserError(
            f"{file} does not say by which recipe it was trained, so that its network is not known "
            "here: give the directory of a run, or call prunus from Python, where your network is"
        )
    with torch.random.fork_rng(devices=[]):
        network = find(recipe).network(file)
    if "compact" in said:
        return dataclasses.replace(network, model=load_compact(file, network.model))
    load_into(network.model, file)
    return network
