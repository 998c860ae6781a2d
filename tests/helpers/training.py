"""The training loop that several test files share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from helpers.data import Batch


def squared_error(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean squared error of a model on a batch."""
    inputs, targets = batch
    loss: torch.Tensor = (model(inputs) - targets).square().mean()
    return loss


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    steps: int,
    term: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Train with the squared error on one batch.

    Args:
        model: The model in training.
        optimizer: Its optimizer; LBFGS gets a closure, every other one gradients.
        batch: Inputs and targets.
        steps: Number of steps.
        term: Returns what is added to a loss, as ``pruner.penalty`` does.
    """

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = squared_error(model, batch)
        if term is not None:
            loss = loss + term(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        else:
            closure()
            optimizer.step()
