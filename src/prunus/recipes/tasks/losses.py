"""What a recipe trains its networks for: to predict what is right, or what a teacher predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["NO_CLASS", "Teacher", "cross_entropy"]

NO_CLASS = -100
"""Stands for the right class of an item that does not count, such as padding."""


@dataclass(frozen=True)
class Teacher:
    """A network whose predictions another one learns from.

    Attributes:
        network: In evaluation mode.
        share: Of the loss, from 0 to 1.
    """

    network: nn.Module
    share: float


def cross_entropy(
    predict: Callable[[nn.Module], tuple[torch.Tensor, torch.Tensor]],
    model: nn.Module,
    teacher: Teacher | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the mean cross-entropy against the right classes and against a teacher's.

    With s the teacher's share it is (1 − s) · H(right, model) + s · H(teacher, model), in nats.

    Args:
        predict: Returns what a network makes of a batch, logits of shape (items, classes), and the
            right class of each item, of shape (items,); an item of class :data:`NO_CLASS` does not
            count.
        model: The network that learns.
        teacher: The network that it learns from besides, if any.
        label_smoothing: Share of the right classes' probability that goes to all classes alike.

    Source: distillation after Hinton et al., arXiv 1503.02531, at temperature 1.

    Example:
        >>> import math
        >>> def predict(network):
        ...     return network(torch.ones(1, 1)), torch.tensor([0])
        >>> model, dense = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> for network in (model, dense):
        ...     for parameter in network.parameters():
        ...         _ = nn.init.zeros_(parameter)
        >>> _ = nn.init.constant_(model.bias[1:], math.log(3))  # gives the right class a quarter
        >>> _ = nn.init.constant_(dense.bias[1:], 100.0)  # is sure of the other one
        >>> loss = cross_entropy(predict, model, Teacher(dense, share=0.25)).item()
        >>> math.isclose(loss, -0.75 * math.log(1 / 4) - 0.25 * math.log(3 / 4), rel_tol=1e-6)
        True
    """
    logits, right = predict(model)
    if teacher is None:
        return F.cross_entropy(
            logits, right, label_smoothing=label_smoothing, ignore_index=NO_CLASS
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    with torch.no_grad():
        # Both losses as one, against a mixture of what is right and what is taught, for over many
        # classes the logarithm of the softmax and its gradient are worth taking but once.
        counts = (right != NO_CLASS).unsqueeze(1)
        taught = predict(teacher.network)[0].softmax(dim=-1, dtype=wide)
        own = 1 - teacher.share
        taught.mul_(teacher.share).add_(own * label_smoothing / taught.shape[1])
        taught.scatter_add_(
            1,
            right.clamp(min=0).unsqueeze(1),
            taught.new_full(counts.shape, own * (1 - label_smoothing)),
        )
        taught.mul_(counts)
    return F.cross_entropy(logits.to(wide), taught, reduction="sum") / counts.sum()
