"""A run of a recipe: dense training, pruning, delivery and summary."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from prunus._utils.digits import format_metrics
from prunus._utils.files import write_atomically
from prunus._utils.random_states import seed_all
from prunus.errors import CheckpointError, FloorNotReachedError
from prunus.recipes.config import Config
from prunus.recipes.recipe import Recipe
from prunus.recipes.run import teacher_outputs
from prunus.recipes.run.context import RunContext, Stopped, check_pattern, weights_to_keep
from prunus.recipes.run.dense_network import (
    check_donor,
    frozen_dense_network,
    obtain_dense_network,
)
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.loop import train
from prunus.recipes.run.phases import PruningPhase
from prunus.recipes.run.progress import Progress
from prunus.recipes.run.state import RunState
from prunus.recipes.run.summary import summarize
from prunus.recipes.run.weight_file import encode_weights, load_weights
from prunus.recipes.tasks.losses import Teacher

__all__ = ["Stopped", "run"]


def run(
    recipe: Recipe,
    config: Config,
    directory: RunDirectory,
    progress: Progress,
    *,
    data: str | None = None,
    seed: int = 0,
    dense: str | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a recipe from start to end, or from its last checkpoint.

    Args:
        recipe: The recipe to train.
        config: Its settings, as they are or changed.
        directory: The directory to write to.
        progress: Receives progress callbacks.
        data: A folder or Hub name to use instead of the recipe's own data.
        seed: The seed of the weights, the data order and the validation split.
        dense: The directory of another run of this recipe, with the same seed, data and settings of
            the dense training, whose dense network to adopt instead of training one.
        resume: Whether to resume the run in ``directory``. The result is the same, bit for bit, as
            without the interruption.
        stop: Called after each step and each epoch; returns whether to save and stop there.

    Returns:
        The summary, as written to summary.json.

    Raises:
        PrunusError: An error that the user can fix; the files written so far are intact.
        Stopped: ``stop`` returned True.
    """
    identity = {
        **recipe.identity,
        "seed": seed,
        "data": data,
        "dense": dense,
        "config": config.as_dict(),
    }
    with directory.claimed(resume=resume):
        if resume:
            identity = directory.check_config(identity)
            if (complete := _complete_summary(directory, progress)) is not None:
                return complete
        progress.report(f"data: {data or recipe.data}")
        context, state = _prepare(recipe, config, directory, progress, identity, stop)
        if dense is not None and not directory.checkpoints:
            check_donor(context)
        if not resume:
            context.task.check()
            directory.write_config(identity)
        _load_checkpoint(context, state, resume=resume)
        obtain_dense_network(context, state)
        sparsity = _prune(context, state)
        summary = summarize(context, state, sparsity)
        directory.write_summary(summary)
        return summary


def _complete_summary(directory: RunDirectory, progress: Progress) -> dict[str, Any] | None:
    """Return the summary of a complete run; None if the run has to be resumed."""
    summary = directory.read_summary()
    if summary is None:
        return None
    if directory.model_is_whole():
        progress.report(f"the run in {directory.path} is complete; nothing is left to do")
        return summary
    progress.report(f"{directory.model_file} is missing or damaged: it is written again")
    return None


def _prepare(
    recipe: Recipe,
    config: Config,
    directory: RunDirectory,
    progress: Progress,
    identity: dict[str, Any],
    stop: Callable[[], bool],
) -> tuple[RunContext, RunState]:
    """Load the data and build the network; settings that do not fit it are rejected here."""
    seed_all(identity["seed"])
    task = recipe.prepare(config, identity["data"], identity["seed"])
    for note in task.notes:
        progress.report(note)
    model = task.network()
    selection = task.selection(model, biases=config.biases, norms=config.norms)
    kept = weights_to_keep(config, model, selection)
    steps = config.epochs * task.steps_per_epoch
    kept = check_pattern(config, model, selection, kept, steps=steps)
    context = RunContext(recipe, config, directory, progress, task, identity, selection, kept, stop)
    return context, RunState.initial(model, identity["seed"])


def _load_checkpoint(context: RunContext, state: RunState, *, resume: bool) -> None:
    """Load the last checkpoint, if there is one, and drop the metrics written after it.

    Raises:
        CheckpointError: It is damaged, or one of another run or other data.
    """
    directory, progress = context.directory, context.progress
    if not directory.checkpoints:
        if resume:
            # The first line of metrics is written before the first checkpoint.
            lost = directory.metric_lines > 1
            reason = "its checkpoints are missing" if lost else "no epoch was complete yet"
            progress.report(f"{reason}, so the run starts again")
        directory.truncate_metrics(0)
        return
    tree = directory.checkpoints.load(progress.report)
    if tree.get("run") != context.identity:
        raise CheckpointError(
            f"{directory.checkpoints.last} is not a checkpoint of this run but of another one, "
            "with other settings or another seed; restore its own checkpoint, or start again in "
            "another --out"
        )
    if tree.get("data") != context.task.fingerprint:
        raise CheckpointError(
            f"the data are not those that the run in {directory.path} began with: pass the same "
            "--data, or start again in another --out"
        )
    try:
        if tree["phase"] == PruningPhase.name:  # damage is found now and not at the end of the run
            load_weights(context.task.network(), directory.dense_file)
        state.load_tree(tree)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{directory.checkpoints.last} is not a checkpoint of this recipe: {error}; restore "
            "its own checkpoint, or start again in another --out"
        ) from error
    directory.truncate_metrics(state.metric_lines)


def _prune(context: RunContext, state: RunState) -> float:
    """Train the sparse network, and write it; return its sparsity."""
    config, task, directory = context.config, context.task, context.directory
    _check_floor(context, state)
    task.prepare_pruning(state.model)
    # Loaded once, and only if it is needed.
    dense = functools.cache(lambda: frozen_dense_network(context, state))
    teacher = Teacher(dense(), config.distillation) if config.distillation else None
    task.use_teacher_outputs(teacher_outputs.load_or_compute(context, dense))
    phase = PruningPhase(context, state, teacher)
    train(context, state, phase)
    phase.pruner.finish()
    if config.ratio and not phase.ratio_reached:
        context.progress.report(
            f"the ratio {config.ratio:g} was not reached: no network sparser than the delivered "
            "one met the floor"
        )
    sparsity = phase.pruner.sparsity
    content = encode_weights(state.model, recipe=context.recipe.name, sparsity=sparsity)
    write_atomically(directory.model_file, content)
    task.publish(state.model, directory.path)
    state.clock.charge(phase.name)
    return sparsity


def _check_floor(context: RunContext, state: RunState) -> None:
    """Check that the dense network meets the floor.

    Raises:
        FloorNotReachedError: It does not, so that no weight may be removed.
    """
    assert state.dense_metric is not None
    constraint = context.config.make_constraint(state.dense_metric)
    if constraint.met(state.dense_metric):
        return
    metric, bound = format_metrics([state.dense_metric, constraint.bound])
    unit = constraint.unit_problem(state.dense_metric)
    raise FloorNotReachedError(
        f"the dense network reaches a validation {context.task.metric} of "
        f"{metric}, which does not meet the {constraint.bound_name} {bound}, so nothing may be "
        f"removed: {constraint.relax} it or raise dense_epochs"
        + ("" if unit is None else f"; {unit}")
    )
