"""The progress interface: the events that a run reports while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prunus.constraint import Constraint
from prunus.recipes.run.state import PhaseName
from prunus.validation import PenaltyReport

__all__ = ["Epoch", "PhaseStart", "Progress", "ProgressGroup"]


@dataclass(frozen=True)
class PhaseStart:
    """The start of a phase, or its resumption.

    Attributes:
        name: "dense" or "prune".
        metric: The name of the validation metric.
        constraint: The bound that the metric must meet; None where no floor applies.
        epochs: The number of epochs of the phase.
        steps_per_epoch: The number of optimizer steps in each.
        epochs_done: The number of epochs that are complete already.
    """

    name: PhaseName
    metric: str
    constraint: Constraint | None
    epochs: int
    steps_per_epoch: int
    epochs_done: int


@dataclass(frozen=True)
class Epoch:
    """A complete epoch, which is one line of metrics.jsonl.

    Attributes:
        phase: "dense" or "prune".
        epoch: Its number within the phase, from 1.
        loss: Mean training loss of the epoch.
        validation_loss: Mean loss on the validation split.
        validation: The metric there, before the iterative schedule removes weights.
        extra_metrics: Further metrics of the validation split.
        floor: The bound that the metric must meet, or None.
        sparsity: Removed / prunable weights while the metric was measured.
        removed: The number of weights removed after this validation.
        penalty: What the penalty did in a step of this epoch, or None.
        predicted_cost: By how much the training loss was expected to rise by what was removed since
            the previous validation, or None.
        seconds: Time since the run began, including its earlier processes.
        lr: The learning rate of its last step; None in older records.
        restored: Whether the pruner returned to the best state after this validation.
    """

    phase: PhaseName
    epoch: int
    loss: float
    validation_loss: float
    validation: float
    extra_metrics: dict[str, float]
    floor: float | None = None
    sparsity: float = 0.0
    removed: int = 0
    penalty: PenaltyReport | None = None
    predicted_cost: float | None = None
    seconds: float = 0.0
    lr: float | None = None
    restored: bool = False


class Progress(Protocol):
    """Receives progress callbacks."""

    def begin(self, phase: PhaseStart) -> None:
        """Receive the start or resumption of a phase."""
        ...

    def step(self) -> None:
        """Receive the end of an optimizer step."""
        ...

    def epoch(self, epoch: Epoch) -> None:
        """Receive an epoch, once it is saved."""
        ...

    def report(self, message: str) -> None:
        """Receive a message for the user."""
        ...


@dataclass(frozen=True)
class ProgressGroup:
    """Passes progress callbacks on to several receivers, in their order.

    Attributes:
        receivers: The receivers.
    """

    receivers: Sequence[Progress]

    def begin(self, phase: PhaseStart) -> None:
        """Pass on the start or resumption of a phase."""
        for receiver in self.receivers:
            receiver.begin(phase)

    def step(self) -> None:
        """Pass on the end of an optimizer step."""
        for receiver in self.receivers:
            receiver.step()

    def epoch(self, epoch: Epoch) -> None:
        """Pass on an epoch."""
        for receiver in self.receivers:
            receiver.epoch(epoch)

    def report(self, message: str) -> None:
        """Pass on a message for the user."""
        for receiver in self.receivers:
            receiver.report(message)
