"""What a run tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Epoch", "Progress"]


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl.

    Attributes:
        phase: "dense" or "prune".
        epoch: Counted from 1 within the phase.
        loss: Mean training loss of the epoch.
        validation_loss: Mean loss on the validation split.
        validation: The metric there, before this epoch's removal by the iterative schedule.
        more: Other figures of the validation split.
        floor: What the metric must reach, or None.
        sparsity: Removed / prunable weights while the metric was measured.
        removed: How many weights were removed because of it.
        seconds: Since the run began, earlier parts of a resumed run included.
    """

    phase: str
    epoch: int
    loss: float
    validation_loss: float
    validation: float
    more: dict[str, float]
    floor: float | None = None
    sparsity: float = 0.0
    removed: int = 0
    seconds: float = 0.0


class Progress(Protocol):
    """Watches a run."""

    def begin(self, phase: str, metric: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """Hear that a phase, judged by ``metric``, begins or goes on after ``done`` epochs."""
        ...

    def step(self) -> None:
        """Hear of a step."""
        ...

    def epoch(self, epoch: Epoch) -> None:
        """Hear of an epoch that is over and saved."""
        ...

    def say(self, message: str) -> None:
        """Hear of anything else a user should know."""
        ...
