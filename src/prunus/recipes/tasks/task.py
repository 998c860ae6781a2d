"""The task interface: data, network, loss and metric of a recipe."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from prunus._inference.model_calls import ExampleInputs
from prunus._utils.files import digest_tensor
from prunus.recipes.tasks.losses import Teacher
from prunus.selection import Selection, select

__all__ = ["Batch", "Evaluation", "Task", "TeacherOutput", "fingerprint"]

Batch = Any
"""The input of one call of a network, of a type that its task defines."""

TeacherOutput = dict[str, torch.Tensor]
"""The outputs of the dense network for a part of the training data."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a network on a split.

    Attributes:
        loss: The mean loss.
        metric: The metric of the task.
        extra_metrics: Further metrics by name.
        samples: Lines for the user to read, such as inputs with the network's outputs.
    """

    loss: float
    metric: float
    extra_metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[str] = ()


class Task(ABC):
    """Data, network, loss and metric of a recipe.

    A subclass that keeps the defaults prunes the network as it was trained, on the labels of the
    data, and needs no files besides the weights.

    Attributes:
        metric: The name of the metric, such as "accuracy".
        extra_metrics: The names of the further metrics of its evaluations.
        about: Facts for the summary, such as how the metric is computed.
        notes: Lines to report before the training, such as which examples are left out.
        steps_per_epoch: The number of optimizer steps in an epoch.
        fingerprint: A digest of the data.
    """

    metric: ClassVar[str]
    extra_metrics: ClassVar[tuple[str, ...]] = ()
    about: Mapping[str, str] = {}
    notes: Sequence[str] = ()
    steps_per_epoch: int
    fingerprint: str

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the dense network with new random weights."""

    @abstractmethod
    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Build the optimizer."""

    @abstractmethod
    def batches(self, generator: torch.Generator) -> Iterator[Sequence[Batch]]:
        """Yield the batches of each step of an epoch; several where gradients are accumulated.

        Args:
            generator: The random numbers of the data order, the only ones that may be drawn.
        """

    @abstractmethod
    def size(self, batch: Batch) -> int:
        """Return the number of items over which the loss of a batch is averaged."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Return the mean loss of a batch against the labels, and against a teacher if any."""

    @abstractmethod
    def validate(self, model: nn.Module) -> Evaluation:
        """Evaluate on the validation split."""

    @abstractmethod
    def test(self, model: nn.Module) -> Evaluation:
        """Evaluate on the test split."""

    def selection(self, model: nn.Module, *, biases: bool, norms: bool) -> Selection:
        """Return the tensors that may be pruned.

        Args:
            model: The network.
            biases: Whether biases may be pruned.
            norms: Whether the weights of normalization layers may be pruned.
        """
        return select(model, biases=biases, norms=norms)

    def check(self) -> None:  # noqa: B027 - a default
        """Check, at the start of a new run, what would otherwise fail later in it.

        Raises:
            PrunusError: Something would.
        """

    def calibration_inputs(self) -> Sequence[ExampleInputs]:
        """Return batches of training inputs, for the scales of a network in int8; none by default.

        Without any, the scales come from the network's example inputs.
        """
        return ()

    def prepare_pruning(self, model: nn.Module) -> None:  # noqa: B027 - a default
        """Change a network from the settings of the dense training to those of pruning."""

    def teacher_outputs(
        self, dense: Callable[[], nn.Module]
    ) -> Iterator[tuple[float, TeacherOutput]]:
        """Yield outputs of the dense network for the training data, with the fraction done.

        Yields nothing where the sparse network trains on labels. Each call yields the same.

        Args:
            dense: Returns the dense network.
        """
        return iter(())

    def use_teacher_outputs(self, outputs: Sequence[TeacherOutput]) -> None:  # noqa: B027
        """Replace the labels of the training data by these outputs from now on."""

    def publish(self, model: nn.Module, directory: Path) -> None:  # noqa: B027 - a default
        """Write the files that a user of the network needs besides its weights."""


def fingerprint(parts: Iterable[torch.Tensor | str]) -> str:
    """Return a digest of tensors and texts.

    Example:
        >>> fingerprint(["a", torch.zeros(2)]) == fingerprint(["a", torch.zeros(3)])
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest_tensor(digest, part)
        else:
            digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()
