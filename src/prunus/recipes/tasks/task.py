"""What a recipe trains on, behind one face: its data, network, loss and measure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from prunus.recipes.tasks.losses import Teacher

__all__ = ["Batch", "Evaluation", "Lesson", "Task", "fingerprint"]

Batch = Any
"""Whatever a task feeds to its network at once."""

Lesson = dict[str, torch.Tensor]
"""What a dense network makes of a part of the training data."""


@dataclass(frozen=True)
class Evaluation:
    """How well a network does on a split.

    Attributes:
        loss: The mean loss.
        metric: What the task is judged by.
        more: Other figures, by name.
        samples: A few lines of what the network makes of its inputs, to be read.
    """

    loss: float
    metric: float
    more: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[str] = ()


class Task(Protocol):
    """Data, network, loss and measure of a recipe."""

    @property
    def metric(self) -> str:
        """The name of what it is judged by."""
        ...

    @property
    def about(self) -> Mapping[str, str]:
        """Facts for the summary, such as how the metric was computed."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for the same data only."""
        ...

    def network(self) -> nn.Module:
        """Build the dense network, with new random weights."""
        ...

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Build the optimizer."""
        ...

    def epoch(self, order: torch.Generator) -> Iterator[Sequence[Batch]]:
        """Yield the batches of each step of an epoch: several where gradients are accumulated."""
        ...

    def size(self, batch: Batch) -> int:
        """Return over how many items the loss of a batch is a mean."""
        ...

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Return the mean loss of a batch, against what is right and what a teacher predicts."""
        ...

    def prepare_pruning(self, model: nn.Module) -> None:
        """Change a network that was built for the dense training to what the pruning wants."""
        ...

    def lessons(self, dense: Callable[[], nn.Module]) -> Iterator[tuple[float, Lesson]]:
        """Yield what the dense network, asked for, makes of the training data, and the share done.

        Nothing where the sparse network shall learn what is right. The same at each call.
        """
        ...

    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Train on all of these from now on, in place of what is right."""
        ...

    def validate(self, model: nn.Module) -> Evaluation:
        """Measure on the validation split."""
        ...

    def test(self, model: nn.Module) -> Evaluation:
        """Measure on the test split."""
        ...

    def publish(self, model: nn.Module, directory: Path) -> None:
        """Write what a user of the network needs besides its weights."""
        ...


def fingerprint(parts: Iterable[torch.Tensor | str]) -> str:
    """Return the same text for the same content only.

    Example:
        >>> fingerprint(["a", torch.zeros(2)]) == fingerprint(["a", torch.zeros(3)])
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()
