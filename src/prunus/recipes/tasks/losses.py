"""The training loss: cross-entropy against labels, and against the predictions of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["NO_CLASS", "Teacher", "cross_entropy"]

NO_CLASS = -100
"""The label of an item that does not count, such as padding."""


@dataclass(frozen=True)
class Teacher:
    """A network whose predictions another one learns from.

    Attributes:
        network: The network, in evaluation mode.
        fraction: The fraction of the loss that compares with its predictions, from 0 to 1.
    """

    network: nn.Module
    fraction: float


def cross_entropy(
    predict: Callable[[nn.Module], tuple[torch.Tensor, torch.Tensor]],
    model: nn.Module,
    teacher: Teacher | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the mean cross-entropy against the labels and against a teacher's predictions.

    With f the teacher's fraction it is (1 − f) · H(labels, model) + f · H(teacher, model), in nats.

    Args:
        predict: Returns the logits of a network for a batch, of shape (items, classes), and the
            label of each item, of shape (items,); an item with label :data:`NO_CLASS` does not
            count.
        model: The network that learns.
        teacher: The teacher, if any.
        label_smoothing: The fraction of the labels' probability that is spread evenly over all
            classes.

    Source: distillation after Hinton et al., arXiv 1503.02531, at temperature 1.

    Example:
        >>> import math
        >>> def predict(network):
        ...     return network(torch.ones(1, 1)), torch.tensor([0])
        >>> model, dense = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> for network in (model, dense):
        ...     for parameter in network.parameters():
        ...         _ = nn.init.zeros_(parameter)
        >>> _ = nn.init.constant_(model.bias[1:], math.log(3))  # gives the label a quarter
        >>> _ = nn.init.constant_(dense.bias[1:], 100.0)  # is sure of the other one
        >>> loss = cross_entropy(predict, model, Teacher(dense, fraction=0.25)).item()
        >>> math.isclose(loss, -0.75 * math.log(1 / 4) - 0.25 * math.log(3 / 4), rel_tol=1e-6)
        True
    """
    logits, labels = predict(model)
    if teacher is None:
        return F.cross_entropy(
            logits, labels, label_smoothing=label_smoothing, ignore_index=NO_CLASS
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    with torch.no_grad():
        # Both losses are computed as one, against a mixture of labels and predictions, because over
        # many classes the logarithm of the softmax and its gradient are expensive.
        counts = (labels != NO_CLASS).unsqueeze(1)
        mixture = predict(teacher.network)[0].softmax(dim=-1, dtype=wide)
        rest = 1 - teacher.fraction
        mixture.mul_(teacher.fraction).add_(rest * label_smoothing / mixture.shape[1])
        mixture.scatter_add_(
            1,
            labels.clamp(min=0).unsqueeze(1),
            mixture.new_full(counts.shape, rest * (1 - label_smoothing)),
        )
        mixture.mul_(counts)
    return F.cross_entropy(logits.to(wide), mixture, reduction="sum") / counts.sum()
