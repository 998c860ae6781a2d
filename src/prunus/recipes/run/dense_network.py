"""The dense network of a run: trained, saved, or adopted from another run."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from prunus._utils.files import link_or_copy, load_tree, save_tree, write_atomically
from prunus._utils.random_states import host_random_states, load_host_random_states
from prunus.errors import PrunusError, listing
from prunus.recipes.run.context import RunContext
from prunus.recipes.run.directory import RunDirectory, recipe_digest
from prunus.recipes.run.loop import train
from prunus.recipes.run.phases import DensePhase, PruningPhase
from prunus.recipes.run.state import RunState
from prunus.recipes.run.weight_file import encode_weights, load_weights
from prunus.recipes.setting_marks import Affects

__all__ = ["check_donor", "frozen_dense_network", "obtain_dense_network"]


def obtain_dense_network(context: RunContext, state: RunState) -> None:
    """Train the dense network, or adopt that of another run.

    Does nothing where the state is that of the pruning phase already.
    """
    if state.phase == PruningPhase.name:
        return
    if context.identity["dense"] is None:
        train(context, state, DensePhase(context, state))
    else:
        _adopt(context, state, RunDirectory(Path(context.identity["dense"])))
    _save(context, state)


def check_donor(context: RunContext) -> None:
    """Check that another run's dense network is the one that this run would train.

    Raises:
        PrunusError: Its recipe, seed, data or settings of the dense training differ; every
            difference is listed.
    """
    donor = RunDirectory(Path(context.identity["dense"]))
    identity = donor.read_config()
    if identity["recipe"] != context.recipe.name:
        raise PrunusError(
            f"the run in {donor.path} is of the recipe {identity['recipe']}, not "
            f"{context.recipe.name}: choose another --dense"
        )
    if recipe_digest(identity) != recipe_digest(context.identity):
        raise PrunusError(
            f"the dense network of {donor.path} cannot be used here, because {context.recipe.name} "
            "has changed since then: choose another --dense, or leave it out to train one"
        )
    config = type(context.config).from_dict(identity["config"], donor.config_file)
    theirs, ours = (
        each.settings_affecting(Affects.DENSE_NETWORK) for each in (config, context.config)
    )
    for key in ("seed", "data"):
        theirs[key], ours[key] = identity[key], context.identity[key]
    differences = [
        f"{key} is {theirs[key]!r} there and {ours[key]!r} here"
        for key in ours
        if theirs[key] != ours[key]
    ]
    if differences:
        raise PrunusError(
            f"the dense network of {donor.path} cannot be used here: {listing(differences)}; "
            "choose another --dense, or leave it out to train one"
        )
    if not donor.dense_file.is_file():
        raise PrunusError(
            f"the run in {donor.path} has not finished its dense training: resume it, or choose "
            "another --dense"
        )
    after = load_tree(donor.after_dense_file)
    missing = [key for key in _AFTER_DENSE if key not in after]
    if missing:
        raise PrunusError(
            f"{donor.after_dense_file} was written by another version: it lacks "
            f"{listing(missing)}; choose another --dense, or leave it out to train one"
        )
    if after["data"] != context.task.fingerprint:
        raise PrunusError(
            f"the run in {donor.path} used other data: pass the same --data, or choose another "
            "--dense"
        )


_AFTER_DENSE = ("data", "data_order", "random_state", "host_random_states")
"""The entries of the file with the state after the dense training."""


def frozen_dense_network(context: RunContext, state: RunState) -> nn.Module:
    """Return the dense network in evaluation mode, without gradients."""
    # A copy, because the constructor would draw random numbers.
    network = load_weights(copy.deepcopy(state.model), context.directory.dense_file)
    return network.eval().requires_grad_(False)


def _adopt(context: RunContext, state: RunState, donor: RunDirectory) -> None:
    """Load the dense network of another run, and its teacher outputs where they fit."""
    load_weights(state.model, donor.dense_file)
    context.progress.report(f"the dense network is that of {donor.path}")
    config = context.config
    state.dense_metric = context.validate(state.model, DensePhase, config.dense_epochs).metric
    theirs, ours = donor.read_config()["config"], config.settings_affecting(Affects.TEACHER_OUTPUTS)
    same = all(ours[name] == theirs[name] for name in ours)
    if donor.teacher_outputs_file.exists() and same:
        link_or_copy(donor.teacher_outputs_file, context.directory.teacher_outputs_file)
    # From here on the same bits as after a dense training in this run.
    after = load_tree(donor.after_dense_file)
    state.data_generator.set_state(after["data_order"])
    torch.set_rng_state(after["random_state"])
    load_host_random_states(after["host_random_states"])


def _save(context: RunContext, state: RunState) -> None:
    """Write the dense network, and the random states that a run that adopts it needs."""
    # The same bytes are written again if a run was stopped just after this.
    after = {
        "data": context.task.fingerprint,
        "data_order": state.data_generator.get_state(),
        "random_state": torch.get_rng_state(),
        "host_random_states": host_random_states(),
    }
    save_tree(context.directory.after_dense_file, after)
    content = encode_weights(state.model, recipe=context.recipe.name)
    write_atomically(context.directory.dense_file, content)
