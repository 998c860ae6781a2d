"""The training loop, which serves both phases of a run and saves a checkpoint after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from prunus.fitting.steps import train_step
from prunus.recipes.run.context import RunContext, Stopped
from prunus.recipes.run.phases import Phase
from prunus.recipes.run.progress import Epoch
from prunus.recipes.run.state import PartialEpoch, RunState
from prunus.recipes.tasks.task import Batch

__all__ = ["save_checkpoint", "train"]


def train(context: RunContext, state: RunState, phase: Phase) -> None:
    """Train a phase to its end, from its start or from the state that a checkpoint held.

    Raises:
        NonFiniteError: A loss is NaN or infinite.
        CheckpointError: The checkpoint to resume from is not one of this recipe.
        PrunusError: A file cannot be written.
        Stopped: The run was asked to stop, and has saved its state.
    """
    phase.start()
    context.progress.begin(phase.start_event())
    for epoch in range(state.epoch + 1, phase.epochs + 1):
        if phase.exhausted:
            context.progress.report("done before the last epoch: nothing more can be removed")
            break
        record = phase.after_validation(_run_epoch(context, state, phase, epoch))
        _close_epoch(context, state, phase, record)


def save_checkpoint(context: RunContext, state: RunState, phase: Phase) -> None:
    """Write a checkpoint of the current state."""
    tree = state.as_tree(phase.state_dict())
    context.directory.checkpoints.save(
        {"run": context.identity, "data": context.task.fingerprint, **tree}
    )


def _run_epoch(context: RunContext, state: RunState, phase: Phase, epoch: int) -> Epoch:
    """Train for an epoch and validate."""
    loss = _train_epoch(context, state, phase, epoch)
    evaluation = context.validate(state.model, phase, epoch)
    return Epoch(
        phase=phase.name,
        epoch=epoch,
        loss=loss,
        validation_loss=evaluation.loss,
        validation=evaluation.metric,
        extra_metrics=dict(evaluation.extra_metrics),
        lr=phase.last_lr,
    )


def _train_epoch(context: RunContext, state: RunState, phase: Phase, epoch: int) -> float:
    """Train for an epoch, or for the rest of one; return the mean loss."""
    progress, task = context.progress, context.task
    state.data_generator_state = state.data_generator.get_state()
    done, state.partial = state.partial or PartialEpoch(), None
    resumed_at = done.steps
    for step, batches in enumerate(task.batches(state.data_generator), 1):
        if step <= resumed_at:  # it was done before: only its data order is drawn again
            progress.step()
            continue
        number = (epoch - 1) * task.steps_per_epoch + step
        done = _train_step(context, state, phase, batches, number, done)
        progress.step()
        if context.stop():
            state.clock.charge(phase.name)
            state.partial = done
            save_checkpoint(context, state, phase)
            raise Stopped(f"stopped after step {step} of epoch {epoch} ({phase.name})")
    return done.mean_loss


def _train_step(
    context: RunContext,
    state: RunState,
    phase: Phase,
    batches: Sequence[Batch],
    number: int,
    done: PartialEpoch,
) -> PartialEpoch:
    """Take one optimizer step; return the progress within the epoch after it."""
    task = context.task
    loss_sum, size_sum = done.loss_sum, done.size_sum

    def loss(batch: Batch) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=context.config.autocast):
            return task.loss(state.model, batch, phase.teacher)

    def observe(value: float, size: int) -> None:
        nonlocal loss_sum, size_sum
        context.check_finite(value, phase, number)
        loss_sum, size_sum = loss_sum + value * size, size_sum + size

    train_step(
        phase.optimizer,
        phase.scheduler,
        batches,
        loss,
        size=task.size,
        observe=observe,
        penalized=phase.add_penalty,
        before_step=phase.before_step,
    )
    return PartialEpoch(done.steps + 1, loss_sum, size_sum)


def _close_epoch(context: RunContext, state: RunState, phase: Phase, epoch: Epoch) -> None:
    """Write an epoch's line of metrics first, then the checkpoint that counts the lines."""
    state.clock.charge(phase.name)
    epoch = replace(epoch, seconds=round(state.clock.total, 3))
    context.directory.append_metrics(asdict(epoch))
    state.metric_lines += 1
    state.epoch, state.data_generator_state = epoch.epoch, state.data_generator.get_state()
    save_checkpoint(context, state, phase)
    context.progress.epoch(epoch)
    if context.stop():
        raise Stopped(f"stopped after epoch {epoch.epoch} ({phase.name})")
