"""Arguments and steps that the adapters share, without importing any trainer."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import nn

from prunus._distributed.shards import gathered
from prunus._engine.default_method import PenaltyChoice, with_defaults
from prunus._engine.preconditions import argument_problems, check_growth, missing_metric_problem
from prunus._utils.checks import raise_problems, type_problem
from prunus.allocation import Allocation
from prunus.constraint import Mode, constraint_problems
from prunus.errors import ArgumentError, PrunusError
from prunus.growth import Growth
from prunus.masks import Masks
from prunus.patterns.binding import PatternChoice
from prunus.pruner import Pruner
from prunus.schedules import Schedule
from prunus.scores import Score
from prunus.selection import Selection, as_selection, select
from prunus.validation import Validation

__all__ = [
    "STATE_FILE",
    "CallbackArguments",
    "PrunerOptions",
    "check_several",
    "saved_state",
    "select_trained",
    "step_and_log",
    "warn_of_late_removals",
]

STATE_FILE = "prunus.safetensors"
"""Name of the pruner's file in a checkpoint that is a folder."""

_LOG = logging.getLogger(__name__)


class PrunerOptions(TypedDict, total=False):
    """The arguments of :class:`~prunus.Pruner` that are passed by name; documented there."""

    floor: float | str | None
    mode: Mode
    dense_metric: float | None
    score: Score
    allocation: Allocation
    selection: Selection | Callable[[nn.Module], Selection] | None
    masks: Mapping[str, torch.Tensor] | None
    min_density: float
    keep_best: bool
    max_grad_norm: float | None
    growth: Growth | None
    pattern: PatternChoice


@dataclass(frozen=True, kw_only=True)
class CallbackArguments:
    """The arguments of a callback from which it builds a pruner when training begins.

    Args:
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`.
        metric: Name of the validation metric, or None.
        floor: As for :class:`~prunus.Pruner`.
        mode: As for :class:`~prunus.Pruner`.
        dense_metric: As for :class:`~prunus.Pruner`.
        score: As for :class:`~prunus.Pruner`.
        allocation: As for :class:`~prunus.Pruner`.
        selection: As for :class:`~prunus.Pruner`.
        masks: As for :class:`~prunus.Pruner`.
        keep_zeros: Whether to start from the masks of the weights that are zero already.
        min_density: As for :class:`~prunus.Pruner`.
        keep_best: As for :class:`~prunus.Pruner`.
        growth: As for :class:`~prunus.Pruner`.
        pattern: As for :class:`~prunus.Pruner`.
    """

    penalty: PenaltyChoice
    schedule: Schedule | None
    metric: str | None
    floor: float | str | None
    mode: Mode
    dense_metric: float | None
    score: Score
    allocation: Allocation
    selection: Selection | Callable[[nn.Module], Selection] | None
    masks: Mapping[str, torch.Tensor] | None
    keep_zeros: bool
    min_density: float
    keep_best: bool
    growth: Growth | None
    pattern: PatternChoice

    def check(self, naming: str) -> None:
        """Check the arguments before any training begins.

        Args:
            naming: How to name a metric, for the message.

        Raises:
            ArgumentError: An argument is out of range, the metric is missing, or it is a loss that
                ``mode`` maximizes, or ``masks`` and ``keep_zeros`` are both passed.
            ArgumentTypeError: Arguments have the wrong type.
        """
        raise_problems(
            *argument_problems(
                self.penalty,
                self.schedule,
                self.score,
                self.allocation,
                self.growth,
                self.pattern,
                self.min_density,
                self.selection,
            ),
            *constraint_problems(self.floor, self.mode, self.dense_metric),
            type_problem("metric", self.metric, str, "the name of a metric", optional=True),
            type_problem("masks", self.masks, Mapping, "masks by name", optional=True),
        )
        penalty, schedule = with_defaults(self.penalty, self.schedule, self.floor)
        check_growth(self.growth, penalty, schedule, self.pattern)
        if self.metric is None:
            raise_problems(missing_metric_problem(schedule, self.floor, fix=naming))
        if self.metric is not None and self.metric.endswith("loss") and self.mode == "max":
            raise ArgumentError(
                f'the metric {self.metric!r} is a loss, which is better if smaller: pass mode="min"'
            )
        if self.masks is not None and self.keep_zeros:
            raise ArgumentError("masks and keep_zeros=True both set the first masks: pass only one")

    @property
    def chooses_state(self) -> bool:
        """Whether a floor or a metric decides which state is delivered."""
        return self.floor is not None or (self.metric is not None and self.keep_best)

    @property
    def uses_gradient(self) -> bool:
        """Whether the penalty or the score reads gradients."""
        penalty, _ = with_defaults(self.penalty, self.schedule, self.floor)
        return penalty is not None or bool(self.score.memory_names)

    def attach(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        module: nn.Module,
        default_selection: Callable[[nn.Module], Selection],
        earlier: Pruner | None,
        resumed: bool,
        max_grad_norm: float | None,
    ) -> Pruner:
        """Build the pruner of a training.

        Args:
            model: The model as it is trained, possibly inside DistributedDataParallel.
            optimizer: The optimizer, or several, within all wrappers.
            module: The model inside its wrappers.
            default_selection: Selects the tensors if no ``selection`` was passed.
            earlier: The pruner of an earlier training, which is detached. If it was of the same
                model the weights that it removed stay removed.
            resumed: Whether the masks will be loaded from a checkpoint.
            max_grad_norm: As for :class:`~prunus.Pruner`.

        Raises:
            PrunusError: As for :class:`~prunus.Pruner`.
        """
        masks = self.masks
        if earlier is not None:
            masks = dict(earlier.masks) if earlier.model is module else masks
            earlier.detach()
        selected = as_selection(
            default_selection if self.selection is None else self.selection, module
        )
        if resumed:
            masks = None
        elif masks is None and self.keep_zeros:
            masks = Masks.from_zeros(selected)
        return Pruner(
            model,
            optimizer,
            self.penalty,
            self.schedule,
            floor=self.floor,
            mode=self.mode,
            dense_metric=self.dense_metric,
            score=self.score,
            allocation=self.allocation,
            selection=selected,
            masks=masks,
            min_density=self.min_density,
            keep_best=self.keep_best,
            max_grad_norm=max_grad_norm,
            growth=self.growth,
            pattern=self.pattern,
        )


def check_several(callbacks: Sequence[CallbackArguments]) -> None:
    """Check that the callbacks of one Trainer can deliver one validated state together.

    Args:
        callbacks: The arguments of all callbacks of the Trainer.

    Raises:
        PrunusError: There are several, and a floor or a metric of one chooses what is delivered.
    """
    choosing = sum(arguments.chooses_state for arguments in callbacks)
    if len(callbacks) > 1 and choosing:
        raise PrunusError(
            f"this Trainer has {len(callbacks)} PruningCallbacks, of which {choosing} would choose "
            "the state to deliver by floor= or metric=, but each would restore another validation, "
            "and together they would be a network that was never validated: keep one "
            "PruningCallback, or leave floor= and metric= out of all of them, with schedules that "
            "need no metric, such as GradualPruning"
        )


def warn_of_late_removals(schedule: Schedule, steps: float) -> None:
    """Warn if a schedule removes weights after the end of the training.

    Args:
        schedule: The schedule.
        steps: The optimizer steps of the whole training, counted from the pruner's first; infinity
            if they are not known.
    """
    last = schedule.last_step
    if last is None or not math.isfinite(steps) or last <= steps:
        return
    warnings.warn(
        f"{type(schedule).__name__} removes its last weights at optimizer step {last}, but the "
        f"training ends after step {int(steps)}, so that the final sparsity is not reached: train "
        "longer, or choose earlier removals (total_steps= or end= of GradualPruning, at= of "
        "OneShot)",
        stacklevel=3,
    )


def saved_state(pruner: Pruner, *, writes: bool) -> dict[str, Any] | None:
    """Return a pruner's state for a file, with whole tensors, or None if nothing is written.

    Any number of processes can load it, whatever the model is sharded over. If it is sharded all
    processes must call this together.

    Args:
        pruner: The pruner.
        writes: Whether this process writes the file.

    Raises:
        PeerError: Another process did not answer.
    """
    state = None
    if pruner.selection.process_group.sharded:
        state = gathered(pruner.state_dict(), keep=writes)
    elif writes:
        state = pruner.state_dict()
    return state if writes else None


def select_trained(
    model: nn.Module,
    is_trained: Callable[[nn.Parameter], bool] = lambda parameter: parameter.requires_grad,
) -> Selection:
    """Return the selection of :func:`~prunus.select` without the tensors that are not trained.

    Args:
        model: Any module.
        is_trained: Returns whether a tensor is trained. Default: whether it requires gradients.
    """
    if all(is_trained(parameter) for parameter in model.parameters()):
        return select(model)  # which rejects a pattern that excludes nothing
    return select(model, exclude=lambda _name, tensor, _module: not is_trained(tensor))


def step_and_log(pruner: Pruner, name: str | None, metric: float | None) -> Validation:
    """Call ``pruner.step(metric)``, log its result, and return it.

    Args:
        pruner: The pruner.
        name: Name of the metric, or None.
        metric: The metric, or None.
    """
    validation = pruner.step(metric)
    _LOG.info(
        "%s at sparsity %.4f; %d weights removed",
        "validation" if metric is None else f"{name} {metric:.6g}",
        validation.sparsity,
        validation.removed,
    )
    return validation
