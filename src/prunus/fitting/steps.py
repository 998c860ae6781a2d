"""One optimizer step, and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prunus._utils.checks import TypeProblem

__all__ = ["loss_problem", "train_step", "warmup_and_cosine"]


def train_step(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    batches: Sequence[Any],
    loss: Callable[[Any], torch.Tensor],
    *,
    size: Callable[[Any], int],
    observe: Callable[[float, int], None],
    penalized: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    before_step: Callable[[], None] = lambda: None,
) -> None:
    """Take one optimizer step.

    Args:
        optimizer: The optimizer.
        scheduler: The scheduler of its learning rate.
        batches: The batches of the step, whose gradients are added up.
        loss: Returns the mean loss of a batch.
        size: Returns the number of items of a batch.
        observe: Receives the loss and the size of each batch, before its backward pass.
        penalized: Returns the value to differentiate, given the loss. Default: the loss.
        before_step: Edits the gradients. Default: no call.
    """
    optimizer.zero_grad()
    sizes = [size(batch) for batch in batches]
    for batch, items in zip(batches, sizes, strict=True):
        value = loss(batch)
        observe(value.item(), items)
        # Weighted so that the gradients of several batches add up to that of one large batch.
        weighted = penalized(value) * (items / sum(sizes))
        weighted.backward()  # type: ignore[no-untyped-call]
    before_step()
    optimizer.step()
    scheduler.step()


def loss_problem(function: str, loss: Any) -> str | None:
    """Return what is wrong with the value of a loss function, or None.

    Args:
        function: What the message calls the function.
        loss: The value that it returned.

    Example:
        >>> loss_problem("loss()", torch.zeros(3, requires_grad=True))
        'loss() must return the mean loss, a floating-point tensor of one element, but returned \
shape (3,): take the mean over the batch'
    """
    expected = f"{function} must return the mean loss, a floating-point tensor of one element"
    if not isinstance(loss, torch.Tensor) or not loss.is_floating_point():
        shown = loss if isinstance(loss, int | float | None) else type(loss).__name__
        return TypeProblem(f"{expected}, but returned {shown}")
    if loss.numel() != 1:
        return f"{expected}, but returned shape {tuple(loss.shape)}: take the mean over the batch"
    if torch.is_grad_enabled() and not loss.requires_grad:
        return (
            f"{expected} that depends on the network's parameters, but it has no gradient: leave "
            "out .detach(), .item() and torch.no_grad()"
        )
    return None


def warmup_and_cosine(
    optimizer: torch.optim.Optimizer, warmup: float, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a scheduler with a linear rise to the optimizer's learning rate and a cosine to 0.

    Args:
        optimizer: The optimizer.
        warmup: The fraction of the steps over which the learning rate rises.
        steps: The number of steps.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> scheduler = warmup_and_cosine(optimizer, warmup=0.5, steps=4)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates += scheduler.get_last_lr()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> [round(rate, 6) for rate in rates]
        [0.5, 1.0, 1.0, 0.5]
    """
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
