"""What the adapters to trainers share. It imports no trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from prunus.errors import UserError
from prunus.masks import Masks
from prunus.pruner import Pruner
from prunus.schedules import Schedule
from prunus.selection import Selection, select

__all__ = ["STATE_FILE", "check_metric", "let_go", "starting_masks", "trained"]

STATE_FILE = "prunus.safetensors"
"""The pruner's file in a checkpoint that is a folder."""


def check_metric(schedule: Schedule, metric: str | None, mend: str) -> None:
    """Make sure that a schedule that needs a metric is given one, and in the right direction.

    Args:
        schedule: The schedule.
        metric: The metric's name, or None.
        mend: How to name one.

    Raises:
        UserError: It is not.
    """
    if metric is None and (schedule.needs_metric or schedule.floor is not None):
        raise UserError(
            f"{type(schedule).__name__} with floor={schedule.floor!r} needs the validation metric: "
            f"{mend}"
        )
    if metric is not None and metric.endswith("loss") and schedule.mode == "max":
        raise UserError(
            f"the metric {metric!r} is a loss, of which less is better: give the schedule "
            'mode="min"'
        )


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
