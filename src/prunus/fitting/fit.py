"""Training and pruning of a model by its loss, its batches and its validation metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus._utils.checks import as_number, number_problem, raise_problems, type_problem
from prunus._utils.digits import format_metrics
from prunus.constraint import Mode
from prunus.errors import ArgumentError, NonFiniteError
from prunus.fitting.steps import loss_problem, train_step, warmup_and_cosine
from prunus.history import History
from prunus.methods import Method
from prunus.methods import method as find_method
from prunus.pruner import Pruner
from prunus.schedules import GradualPruning, Schedule
from prunus.selection import Selection, model_problem

__all__ = ["FitEpoch", "FitResult", "fit"]

_WARMUP = 0.1
"""The fraction of the steps over which the learning rate rises, as in recipes."""


@dataclass(frozen=True)
class FitEpoch:
    """An epoch of :func:`fit`, as its callback receives it; ``str`` returns a line.

    Attributes:
        epoch: Its number, from 1.
        epochs: The number of epochs.
        loss: The mean training loss.
        metric: The validation metric.
        sparsity: Removed / prunable weights while the metric was measured.
        floor: The bound that the metric must meet; None if there is none.

    Example:
        >>> print(FitEpoch(2, 10, 0.31, 0.98, 0.75, 0.97))
        epoch 2/10  loss 0.3100  metric 0.9800  floor 0.9700  sparsity 0.7500
    """

    epoch: int
    epochs: int
    loss: float
    metric: float
    sparsity: float
    floor: float | None

    def __str__(self) -> str:
        floor = "" if self.floor is None else f"  floor {self.floor:.4f}"
        return (
            f"epoch {self.epoch}/{self.epochs}  loss {self.loss:.4f}  metric {self.metric:.4f}"
            f"{floor}  sparsity {self.sparsity:.4f}"
        )


@dataclass(frozen=True)
class FitResult:
    """The result of :func:`fit`, which ``print`` shows as a table with a row for each validation.

    Attributes:
        dense_metric: The validation metric before the training.
        metric: That of the model as it is now.
        sparsity: Removed / prunable weights.
        history: A record of each validation.
    """

    dense_metric: float
    metric: float
    sparsity: float
    history: History

    def __str__(self) -> str:
        dense, sparse = format_metrics([self.dense_metric, self.metric])
        head = f"metric {sparse}, before the training {dense}; sparsity {self.sparsity:.4f}"
        return f"{head}\n{self.history}"


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    batches: Iterable[Any],
    evaluate: Callable[[nn.Module], float],
    *,
    epochs: int,
    floor: float | str | None = None,
    sparsity: float | None = None,
    mode: Mode = "max",
    optimizer: torch.optim.Optimizer | None = None,
    method: str | Method = "prunus",
    selection: Selection | Callable[[nn.Module], Selection] | None = None,
    progress: Callable[[FitEpoch], object] | None = None,
) -> FitResult:
    """Train a model and make it sparse, and leave it in the sparsest state that met the floor.

    With a floor alone, as much is removed as the floor allows; the model then stays dense if no
    sparser state meets it. With a sparsity, exactly that is removed, by half of the training; with
    both, an earlier state, which is less sparse, is delivered if no later one met the floor.

    Args:
        model: A trained model.
        loss: Returns the mean loss of a batch, given the model and the batch.
        batches: The batches of an epoch, such as a DataLoader; iterated once per epoch.
        evaluate: Returns the validation metric of the model, which is in evaluation mode, without
            gradients.
        epochs: The number of epochs; as many as the model's own training had are a good start.
        floor: The metric that the model must keep: a number, or relative to its present metric,
            such as "dense-0.5%". Default None: any.
        sparsity: Removed / prunable weights in the end, from 0 to 1. Default None: as much as the
            floor allows.
        mode: "max" (default) if larger metrics are better, "min" if smaller are.
        optimizer: The optimizer of the model. Its learning rate rises over the first tenth of the
            steps, falls to 0 along a cosine, and is restored at the end. Default None: Adam with a
            learning rate of 0.001.
        method: The name of one of ``prunus.methods``, or a method. Default "prunus".
        selection: Which tensors may be pruned, as for :class:`~prunus.Pruner`. Default:
            :func:`~prunus.select`.
        progress: Called after each epoch with a :class:`~prunus.fitting.FitEpoch`; ``print`` prints
            lines. Default: no call.

    Returns:
        The metrics, the sparsity, and the history of all validations.

    Raises:
        ArgumentError: An argument is out of range, there is neither a floor nor a sparsity, or the
            batches are empty; every problem is listed.
        ArgumentTypeError: An argument has the wrong type, or the metric is not a number.
        NonFiniteError: The loss or the metric is NaN or infinite.
        FloorNotReachedError: There are a floor and a sparsity, and no sparse state met the floor.
            The model is as its training left it.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(20, 1)
        >>> x = torch.randn(256, 20)
        >>> y = x[:, :1]  # depends on one input only
        >>> result = fit(
        ...     model,
        ...     loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        ...     batches=list(zip(x.split(32), y.split(32))),
        ...     evaluate=lambda model: (model(x) - y).abs().mean().item(),
        ...     mode="min",
        ...     epochs=40,
        ...     sparsity=0.95,
        ...     optimizer=torch.optim.Adam(model.parameters(), lr=0.05),
        ... )
        >>> result.sparsity, model.weight.nonzero().tolist()
        (0.95, [[0, 0]])
    """
    raise_problems(
        model_problem(model),
        *(
            type_problem(name, value, Callable, "a function")  # type: ignore[arg-type]
            for name, value in (("loss", loss), ("evaluate", evaluate))
        ),
        _loss_problem(loss),
        number_problem("epochs", epochs, whole=True, least=1),
        number_problem("sparsity", sparsity, above=0, below=1, optional=True),
        None if floor is not None or sparsity is not None else "pass floor, sparsity or both",
        _batches_problem(batches),
    )
    named = find_method(method) if isinstance(method, str) else method
    steps = _count(batches)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-3)
    training, rates = model.training, [group["lr"] for group in optimizer.param_groups]
    dense_metric = _measure(model, evaluate)
    pruner = Pruner(
        model,
        optimizer,
        schedule=_schedule(sparsity, epochs, steps),
        floor=floor,
        mode=mode,
        dense_metric=dense_metric,
        selection=selection,
        **named.arguments(steps_per_epoch=steps, total_steps=epochs * steps),
    )
    try:
        if sparsity is None:
            pruner.consider(dense_metric)
        scheduler = warmup_and_cosine(optimizer, _WARMUP, epochs * steps)
        for epoch in range(1, epochs + 1):
            model.train()
            mean_loss = _train_epoch(model, loss, batches, steps, scheduler, epoch)
            metric = _measure(model, evaluate)
            measured = pruner.step(metric).sparsity
            if progress is not None:
                progress(FitEpoch(epoch, epochs, mean_loss, metric, measured, pruner.floor))
        pruner.finish()
        metric = _measure(model, evaluate)
    finally:
        pruner.detach()
        model.train(training)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return FitResult(dense_metric, metric, pruner.sparsity, pruner.history)


def _schedule(sparsity: float | None, epochs: int, steps: int) -> Schedule | None:
    """Return the schedule; None for the one that the floor implies."""
    if sparsity is None:
        return None
    return GradualPruning(sparsity=sparsity, epochs=epochs, steps_per_epoch=steps)


@torch.inference_mode(False)  # also where the caller has disabled gradients
def _train_epoch(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    batches: Iterable[Any],
    steps: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
) -> float:
    """Train for an epoch; return the mean loss of its batches.

    Raises:
        ArgumentError: There are not as many batches as in the first epoch, or the loss is none.
        NonFiniteError: The loss is NaN or infinite.
    """
    losses: list[float] = []

    def checked(batch: Any) -> torch.Tensor:
        value = loss(model, batch)
        raise_problems(loss_problem("loss", value))
        return value.reshape(())

    def observe(value: float, _: int) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the loss is {value} in epoch {epoch}: lower the learning rate of the optimizer"
            )
        losses.append(value)

    for batch in _exactly(batches, steps, epoch):
        train_step(
            scheduler.optimizer, scheduler, [batch], checked, size=lambda _: 1, observe=observe
        )
    return sum(losses) / len(losses)


def _exactly(batches: Iterable[Any], steps: int, epoch: int) -> Iterator[Any]:
    """Yield the batches of an epoch.

    Raises:
        ArgumentError: They are not as many as in the first epoch.
    """
    count = 0
    for count, batch in enumerate(batches, 1):
        if count > steps:
            break
        yield batch
    if count != steps:
        found = f"more than {steps}" if count > steps else str(count)
        raise ArgumentError(
            f"batches must be as many in each epoch, {steps}, but are {found} in epoch {epoch}"
        )


def _loss_problem(loss: object) -> str | None:
    """Return that a loss of torch was passed, which takes outputs and not a model, if it was."""
    if not (getattr(loss, "__module__", None) or "").startswith("torch.nn."):
        return None
    name = getattr(loss, "__name__", type(loss).__name__)
    return (
        f"loss must be a function of the model and a batch, but is torch's {name}: pass one that "
        "calls it, such as lambda model, batch: loss_function(model(batch[0]), batch[1])"
    )


def _batches_problem(batches: Any) -> str | None:
    if isinstance(batches, Iterator):
        return (
            f"batches must be iterated once per epoch, but is of type {type(batches).__name__}, "
            "which runs out after one: pass a DataLoader or a list"
        )
    return type_problem("batches", batches, Iterable, "a DataLoader or another iterable")


def _count(batches: Any) -> int:
    """Return the number of batches, counted in a pass where they have no length.

    Raises:
        ArgumentError: There are none.
    """
    try:
        count = len(batches)
    except TypeError:
        count = sum(1 for _ in batches)
    if not count:
        raise ArgumentError("batches must have at least one batch, but is empty")
    return count


def _measure(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> float:
    """Return the metric of the model in evaluation mode."""
    model.eval()
    with torch.no_grad():
        metric = as_number("the value that evaluate returns", evaluate(model))
    if not math.isfinite(metric):
        raise NonFiniteError(f"evaluate must return a finite number, but returned {metric}")
    return metric
