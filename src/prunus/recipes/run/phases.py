"""The phases of a run: the dense training and the pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from prunus.errors import CheckpointError, PrunusError
from prunus.fitting.steps import warmup_and_cosine
from prunus.pruner import Pruner
from prunus.recipes.run.context import RunContext
from prunus.recipes.run.progress import Epoch, PhaseStart
from prunus.recipes.run.state import PhaseName, RunState
from prunus.recipes.tasks.losses import Teacher

__all__ = ["DensePhase", "Phase", "PruningPhase"]


class Phase:
    """A training phase with one warm-up and cosine decay of the learning rate.

    Args:
        context: The fixed parts of the run.
        state: Its state.
        lr: The peak learning rate.
        epochs: The number of epochs.
    """

    name: ClassVar[PhaseName]
    lr_settings: ClassVar[str]
    """The settings to lower if the loss diverges."""

    teacher: Teacher | None = None
    """The network whose predictions the loss compares with, if any."""

    def __init__(self, context: RunContext, state: RunState, lr: float, epochs: int) -> None:
        self.context, self.state, self.epochs = context, state, epochs
        self.optimizer = context.task.optimizer(state.model, lr)
        steps = epochs * context.task.steps_per_epoch
        self.scheduler = warmup_and_cosine(self.optimizer, context.config.warmup, steps)

    def start(self) -> None:
        """Load the state that the checkpoint of this phase holds, if the run resumes from one.

        Raises:
            CheckpointError: The checkpoint is not one of this recipe.
        """
        state, saved = self.state, self.state.phase_state
        if state.phase != self.name or saved is None:
            state.phase, state.epoch, state.partial = self.name, 0, None
            self.start_from_scratch()
            return
        try:
            self.load_state_dict(saved)
        except (KeyError, ValueError, TypeError, PrunusError) as error:
            raise CheckpointError(
                f"{self.context.directory.checkpoints.last} is not a checkpoint of this recipe: "
                f"{error}; restore its own checkpoint, or start again in another --out"
            ) from error
        state.phase_state = None

    def start_from_scratch(self) -> None:
        """Prepare a phase that starts without a checkpoint."""

    def start_event(self) -> PhaseStart:
        """Return the event to report at the start."""
        return PhaseStart(
            self.name,
            self.context.task.metric,
            None,
            self.epochs,
            self.context.task.steps_per_epoch,
            self.state.epoch,
        )

    def add_penalty(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to differentiate."""
        return loss

    def before_step(self) -> None:
        """Edit the gradients before the optimizer's update."""

    def after_validation(self, epoch: Epoch) -> Epoch:
        """Act on the validation of an epoch, and return its record."""
        raise NotImplementedError

    @property
    def last_lr(self) -> float:
        """The learning rate of the last step."""
        scheduler = self.scheduler
        return float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](scheduler.last_epoch - 1))

    @property
    def exhausted(self) -> bool:
        """Whether further epochs would have no effect."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizer and learning-rate scheduler."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


class DensePhase(Phase):
    """The training of the dense network."""

    name = "dense"
    lr_settings = "dense_lr"

    def __init__(self, context: RunContext, state: RunState) -> None:
        super().__init__(context, state, context.config.dense_lr, context.config.dense_epochs)

    def before_step(self) -> None:
        """Clip the gradients, which in the pruning phase the pruner does."""
        if limit := self.context.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.state.model.parameters(), limit)

    def after_validation(self, epoch: Epoch) -> Epoch:
        """Keep the metric as that of the dense network."""
        self.state.dense_metric = epoch.validation
        return epoch


class PruningPhase(Phase):
    """The training of the sparse network.

    Args:
        context: The fixed parts of the run.
        state: Its state, with the metric of the dense network.
        teacher: The dense network to distil from, if any.
    """

    name = "prune"
    lr_settings = "lr or strength"

    def __init__(self, context: RunContext, state: RunState, teacher: Teacher | None) -> None:
        config, task = context.config, context.task
        assert state.dense_metric is not None
        self.teacher = teacher
        if config.initial_weights == "random" and state.phase != self.name:
            state.model.load_state_dict(task.network().state_dict())
        super().__init__(context, state, config.lr, config.epochs)
        self.constraint = config.make_constraint(state.dense_metric)
        self.pruner = Pruner(
            state.model,
            self.optimizer,
            config.make_penalty(task.steps_per_epoch),
            config.make_schedule(
                kept=context.kept,
                prunable=context.selection.prunable,
                steps=config.epochs * task.steps_per_epoch,
            ),
            floor=config.floor,
            mode=config.mode,
            dense_metric=state.dense_metric,
            score=config.make_score(),
            allocation=config.make_allocation(),
            selection=context.selection,
            min_density=config.min_density,
            max_grad_norm=config.max_grad_norm or None,
            growth=config.make_growth(config.epochs * task.steps_per_epoch),
            pattern=config.make_pattern(),
        )
        self._slack = self.pruner.slack

    def start_from_scratch(self) -> None:
        """Keep the dense network as the first state that meets the floor.

        It is delivered if no sparser one does.
        """
        if self.context.config.initial_weights == "dense":
            assert self.state.dense_metric is not None
            self.pruner.consider(self.state.dense_metric)

    def start_event(self) -> PhaseStart:
        """Return the event to report at the start, with the constraint."""
        return replace(super().start_event(), constraint=self.constraint)

    def add_penalty(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss, plus the penalty where it is applied as a term of the loss."""
        return loss + self.pruner.penalty(loss) if self.context.config.penalty_in_loss else loss

    def after_validation(self, epoch: Epoch) -> Epoch:
        """Let the pruner remove weights."""
        validation = self.pruner.step(epoch.validation)
        floor = self.pruner.floor
        if validation.restored:
            self.context.progress.report(
                f"the {self.constraint.bound_name} was out of reach: back to the best network, and "
                f"on from there with a sparsity of {validation.sparsity_after:.4f}"
            )
        return replace(
            epoch,
            floor=floor,
            sparsity=validation.sparsity,
            removed=validation.removed,
            penalty=validation.penalty,
            predicted_cost=validation.predicted_cost,
            restored=validation.restored,
        )

    @property
    def ratio_reached(self) -> bool:
        """Whether the compression ratio of the settings, if any, is reached, up to a group."""
        most = self.context.kept + self._slack
        return bool(self.context.config.ratio) and self.pruner.masks.kept <= most

    @property
    def exhausted(self) -> bool:
        """Whether nothing more can be removed, and the ratio was not reached.

        With the ratio reached the schedule is done too, but the network has yet to recover.
        """
        return self.pruner.done and not self.ratio_reached

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizer, learning-rate scheduler and pruner."""
        return {**super().state_dict(), "pruner": self.pruner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.pruner.load_state_dict(state["pruner"])
