"""What the adapters to trainers share. It imports no trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from prunus._engine.preconditions import argument_problems
from prunus._utils.checks import raise_problems, type_problem
from prunus.constraint import Constraint
from prunus.errors import PrunusError
from prunus.masks import Masks
from prunus.penalties.relevance import RelevancePenalty
from prunus.pruner import Pruner
from prunus.schedules import Schedule
from prunus.scores import Score
from prunus.selection import Selection, select

__all__ = ["STATE_FILE", "check_given", "let_go", "starting_masks", "trained"]

STATE_FILE = "prunus.safetensors"
"""The pruner's file in a checkpoint that is a folder."""


def check_given(
    *,
    penalty: RelevancePenalty | None,
    schedule: Schedule | None,
    score: Score | None,
    min_density: float,
    selection: Selection | Callable[[nn.Module], Selection] | None,
    constraint: Constraint,
    metric: str | None,
    mend: str,
) -> Schedule:
    """Make sure that a callback can work with what it was given, before any training begins.

    Args:
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`.
        score: As for :class:`~prunus.Pruner`.
        min_density: As for :class:`~prunus.Pruner`.
        selection: As for :class:`~prunus.Pruner`.
        constraint: Of the metric.
        metric: The metric's name, or None.
        mend: How to name one.

    Returns:
        The schedule; one that removes nothing, if none was given.

    Raises:
        PrunusError: An argument has the wrong type or is out of range, the schedule needs a metric
            and gets none, or the metric is a loss and ``mode`` is "max".
    """
    raise_problems(
        *argument_problems(penalty, schedule, score, min_density, selection),
        type_problem("metric", metric, str, "the name of a metric", optional=True),
    )
    schedule = Schedule() if schedule is None else schedule
    if metric is None and (schedule.needs_metric or constraint.floor is not None):
        raise PrunusError(
            f"{type(schedule).__name__} with floor={constraint.floor!r} needs the validation "
            f"metric: {mend}"
        )
    if metric is not None and metric.endswith("loss") and constraint.mode == "max":
        raise PrunusError(
            f'the metric {metric!r} is a loss, of which less is better: pass mode="min"'
        )
    return schedule


def trained(
    model: nn.Module, trains: Callable[[nn.Parameter], bool] = lambda tensor: tensor.requires_grad
) -> Selection:
    """Select what :func:`~prunus.select` does, without the tensors that are not trained.

    Args:
        model: Any module.
        trains: Says whether a tensor is trained. Default: whether it is not frozen.
    """
    if all(trains(parameter) for parameter in model.parameters()):
        return select(model)  # for a pattern that excludes nothing is refused
    return select(model, exclude=lambda _name, tensor, _module: not trains(tensor))


def let_go(pruner: Pruner | None, model: nn.Module) -> Mapping[str, torch.Tensor] | None:
    """Detach the pruner of an earlier training; return its masks if that was of the same model."""
    if pruner is None:
        return None
    masks = dict(pruner.masks) if pruner.model is model else None
    pruner.detach()
    return masks


def starting_masks(
    held: Mapping[str, torch.Tensor] | None, selection: Selection, keep_zeros: bool
) -> Mapping[str, torch.Tensor] | None:
    """Return the masks to start from: those held, or if asked for those of the zeros there are."""
    return Masks.from_zeros(selection) if held is None and keep_zeros else held
