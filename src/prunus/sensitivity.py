"""Sensitivity of a model to sparsity: the metric against the sparsity of one tensor at a time."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from prunus._distributed.wrappers import check_wrappers, unwrap
from prunus._engine.removal import Remover
from prunus._engine.trial import restored
from prunus._utils.checks import as_number, number_problem, raise_problems, type_problem
from prunus._utils.files import write_atomically
from prunus._utils.text_table import text_table
from prunus.allocation import Allocation, Pool, TensorCounts
from prunus.constraint import Mode
from prunus.errors import ArgumentError, NonFiniteError, PrunusError
from prunus.masks import Masks
from prunus.scores import MagnitudeScore, Score
from prunus.selection import NamePattern, Selection, as_selection, model_problem

__all__ = ["Sensitivities", "Sensitivity", "sensitivity"]

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
"""The sparsities that are tried by default."""


@dataclass(frozen=True)
class Sensitivity:
    """The metric of a model in which a single tensor is sparse.

    Attributes:
        name: The tensor.
        weights: The number of its prunable weights.
        sparsity: Its sparsity.
        metric: The metric, with all other tensors as they are.
        change: The metric minus that of the whole model.
    """

    name: str
    weights: int
    sparsity: float
    metric: float
    change: float


@dataclass(frozen=True)
class Sensitivities:
    """The sensitivities of all tensors.

    ``str()`` of it is a table with a row for each tensor and a column for each sparsity.

    Attributes:
        metric: The metric of the model as it is.
        records: A record for each tensor, in the model's order, and sparsity.
    """

    metric: float
    records: tuple[Sensitivity, ...]

    def targets(self, tolerance: float, *, mode: Mode = "max") -> dict[NamePattern, float]:
        """Return the largest sparsity of each tensor whose change is tolerable.

        The result suits :class:`~prunus.TargetAllocation`. The changes of several tensors add up,
        and training recovers a part of them, so choose the tolerance by trial.

        Args:
            tolerance: How much worse the metric may become, in its unit, at least 0.
            mode: "max" (default) if larger metrics are better, "min" if smaller are.

        Raises:
            ArgumentError: ``tolerance`` is below 0, or ``mode`` is another.
        """
        raise_problems(
            number_problem("tolerance", tolerance, least=0),
            None if mode in ("max", "min") else f'mode must be "max" or "min", but is {mode!r}',
        )
        sign = 1 if mode == "max" else -1
        found: dict[NamePattern, float] = {record.name: 0.0 for record in self.records}
        for record in self.records:
            if sign * record.change >= -tolerance:
                found[record.name] = max(found[record.name], record.sparsity)
        return found

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table with a row for each tensor and sparsity.

        Args:
            path: The file to write or replace.

        Raises:
            PrunusError: The file cannot be written.
        """
        text = io.StringIO()
        names = [field.name for field in fields(Sensitivity)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) for record in self.records)
        write_atomically(Path(path), text.getvalue().encode())

    def __str__(self) -> str:
        sparsities = sorted({record.sparsity for record in self.records})
        changes = {(record.name, record.sparsity): record.change for record in self.records}
        weights = {record.name: f"{record.weights:,}" for record in self.records}
        # Three significant digits of the largest change.
        largest = max((abs(change) for change in changes.values()), default=0.0)
        decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 1
        rows = [["tensor", "weights", *(f"{sparsity:g}" for sparsity in sparsities)]]
        for name, count in weights.items():
            rows.append([name, count, *(f"{changes[name, s]:+.{decimals}f}" for s in sparsities)])
        head = f"metric {self.metric:.6g}; change if a single tensor has a sparsity of"
        # With all tensors, because the choice of targets depends on each.
        return f"{head}\n{text_table(rows[0], rows[1:], most=len(rows))}"


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[], float],
    sparsities: Sequence[float] = SPARSITIES,
    *,
    score: Score | None = None,
    selection: Selection | Callable[[nn.Module], Selection] | None = None,
) -> Sensitivities:
    """Measure the metric against the sparsity of each tensor alone, without training.

    For each tensor and sparsity the weights with the smallest scores are set to zero, the metric is
    measured, and every bit of the model is restored, also if ``evaluate`` fails. Weights that are
    zero already are among the removed ones.

    Args:
        model: The model, in one process.
        evaluate: Returns the metric of the model as it is, such as the accuracy on validation data.
            It is called once for the model as it is, and once for each tensor and sparsity.
        sparsities: The sparsities, each from 0 to 1. Default: 0.5, 0.7, 0.8, 0.9, 0.95.
        score: The order of removal; one that uses no gradient. Default: ``MagnitudeScore()``.
        selection: The tensors, as for :class:`~prunus.Pruner`. Default: ``select``.

    Returns:
        The metric of each tensor and sparsity.

    Raises:
        ArgumentError: A sparsity is out of range, there is none, or the score uses gradients.
        ArgumentTypeError: An argument, or what ``evaluate`` returns, has the wrong type.
        NonFiniteError: The metric of the model as it is is NaN or infinite.
        PrunusError: The model is sharded over processes, or a tensor cannot be pruned.

    Source: the sensitivity scan of Han et al., "Learning both weights and connections for efficient
    neural networks", arXiv 1506.02626.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.1], [0.1, 1.0]]))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 2.0]]))
        >>> found = sensitivity(model, lambda: model(torch.ones(1, 2)).item(), [0.5])
        >>> print(found)
        metric 3.3; change if a single tensor has a sparsity of
        tensor    weights    0.5
        0.weight        4  -0.30
        1.weight        2  -1.10
        >>> found.targets(tolerance=0.5)
        {'0.weight': 0.5, '1.weight': 0.0}
    """
    score = MagnitudeScore() if score is None else score
    raise_problems(
        model_problem(model),
        type_problem("sparsities", sparsities, Sequence, "a sequence of sparsities"),
        None if callable(evaluate) else f"evaluate must be a function, but is {evaluate!r}",
    )
    raise_problems(
        None if len(sparsities) else "sparsities must have at least one, but is empty",
        *(number_problem("each of sparsities", value, least=0, most=1) for value in sparsities),
    )
    if score.memory_names:
        raise ArgumentError(
            f"{type(score).__name__} needs gradients, which sensitivity() does not compute: choose "
            "a score without, such as MagnitudeScore()"
        )
    check_wrappers(model)
    model = unwrap(model)
    selected = as_selection(selection, model)
    if selected.process_group.sharded:
        raise PrunusError(
            "sensitivity() needs the whole model in one process, but it is sharded: load its state "
            "into a model that is not"
        )
    metric = _measured(evaluate)
    if not math.isfinite(metric):
        raise NonFiniteError(f"the metric of the model must be finite, but is {metric}")
    masks = Masks(selected)
    records = []
    for name, tensor in selected.items():
        weights = masks.kept_in(name)
        for sparsity in sparsities:
            with restored(model, masks), torch.no_grad():
                allocation = _Alone(name)
                removed = round(sparsity * weights)
                Remover(masks, score, {}, allocation=allocation).keep(masks.kept - removed)
                masks.apply_()
                value = _measured(evaluate)
            records.append(Sensitivity(tensor.name, weights, sparsity, value, value - metric))
    return Sensitivities(metric, tuple(records))


def _measured(evaluate: Callable[[], float]) -> float:
    with torch.no_grad():
        return as_number("the result of evaluate()", evaluate())


@dataclass(frozen=True)
class _Alone(Allocation):
    """All weights to remove are of one tensor."""

    name: str

    def pools(
        self, tensors: Sequence[TensorCounts], keep: int, *, final: int | None = None
    ) -> Sequence[Pool]:
        """Return a pool for each tensor."""
        rest = sum(tensor.kept for tensor in tensors if tensor.name != self.name)
        return [
            Pool((tensor.name,), keep - rest if tensor.name == self.name else tensor.kept)
            for tensor in tensors
        ]
