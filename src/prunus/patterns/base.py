"""The interface of patterns, and what they depend on of a tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from prunus._utils.fields import validate
from prunus.patterns.groupings import Grouping

__all__ = ["Along", "Pattern", "PrunableMatrix"]

Along = Literal["input", "output"]
"""The dimension of a matrix along which weights are consecutive."""


@dataclass(frozen=True)
class PrunableMatrix:
    """A tensor as a matrix of shape (outputs, inputs · kernel).

    Attributes:
        name: The tensor's name.
        rows: The number of outputs.
        columns: The number of inputs, times the size of the kernel.
        transposed: Whether the tensor is stored with its inputs first.
        layer: The type of the layer, for messages.
        has_units: Whether its rows are neurons or channels.
    """

    name: str
    rows: int
    columns: int
    transposed: bool = False
    layer: str = "Linear"
    has_units: bool = True

    def __str__(self) -> str:
        return f"{self.name} ({self.rows}×{self.columns}, {self.layer})"


@dataclass(frozen=True)
class Pattern(ABC):
    """The base of every pattern: which weights of a tensor are removed together.

    A pattern divides a matrix of shape (outputs, inputs · kernel) into groups: the weight of a
    linear layer as it is; of a convolution with its inputs and its kernel as one dimension; of an
    embedding with a row for each entry. Layers that store their inputs first (transposed
    convolutions, ``Conv1D`` of transformers) are transposed for it.
    """

    def __post_init__(self) -> None:
        validate(self)

    @abstractmethod
    def problem(self, matrix: PrunableMatrix) -> str | None:
        """Return why the pattern does not fit a matrix, as in "needs ...", or None."""

    @abstractmethod
    def grouping(self, matrix: PrunableMatrix) -> Grouping:
        """Return the grouping of a matrix that the pattern fits."""
