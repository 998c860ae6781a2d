"""Pruners and penalties with the paper's defaults, which need no gradient before a removal."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunus import ExponentialRelevance, MagnitudeScore, Pruner, RelevancePenalty, Schedule
from prunus.penalties.coefficients import Coefficient
from prunus.penalties.relevance import Apply
from prunus.penalties.strengths import Strength

__all__ = ["coupled_penalty", "magnitude_pruner"]

_PAPER = ExponentialRelevance()


def magnitude_pruner(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    penalty: RelevancePenalty | None = None,
    schedule: Schedule | None = None,
    **options: Any,
) -> Pruner:
    """Return a pruner that removes the smallest weights, by default without a penalty."""
    return Pruner(model, optimizer, penalty, schedule, **{"score": MagnitudeScore(), **options})


def coupled_penalty(
    strength: float | Strength = 1e-5,
    coefficient: Coefficient = _PAPER,
    *,
    apply: Apply = "gradient",
    **options: Any,
) -> RelevancePenalty:
    """Return a penalty that is added to the gradient by default."""
    return RelevancePenalty(strength, coefficient, apply=apply, **options)
