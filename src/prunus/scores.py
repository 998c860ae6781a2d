"""Scores: the order of removal, smallest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from prunus._utils.fields import number, validate
from prunus.errors import PrunusError

__all__ = ["MagnitudeScore", "RandomScore", "Score", "TaylorScore", "Uniform"]


Uniform = Callable[[int], torch.Tensor]
"""Returns random numbers for a seed."""


class Score(Protocol):
    """Anything that computes the importance of each weight of a tensor.

    A score may keep one tensor of memory per weight tensor, which the pruner keeps and saves.
    """

    @property
    def uses_gradient(self) -> bool:
        """Whether :meth:`observe` uses the gradient."""
        ...

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the memory to keep after a gradient of the loss, or None to keep none.

        Called before each step, or after each call of the optimizer's closure. The memory has the
        weight's shape.
        """
        ...

    def compute(
        self, weight: torch.Tensor, memory: torch.Tensor | None, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the scores of a chunk of a tensor, of its shape.

        Args:
            weight: The chunk.
            memory: The same chunk of what :meth:`observe` returned last.
            uniform: Returns a random number from 0 to below 1 for each weight of the chunk, given a
                seed: the same at each call within one pruning, however the tensor is divided into
                chunks and shards, and others in the next pruning.
        """
        ...


@dataclass(frozen=True)
class MagnitudeScore:
    """|w|, the paper's score: the penalty has already made irrelevant weights small.

    Example:
        >>> MagnitudeScore().compute(torch.tensor([-2.0, 1.0]), None, uniform=torch.empty).tolist()
        [2.0, 1.0]
    """

    uses_gradient: ClassVar[bool] = False

    def observe(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        memory: torch.Tensor | None,
    ) -> None:
        """Keep nothing."""

    def compute(
        self, weight: torch.Tensor, memory: torch.Tensor | None, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the magnitudes."""
        return weight.abs()


@dataclass(frozen=True)
class TaylorScore:
    """|w · ∂L/∂w|, how much the loss would change, to first order, if the weight were removed.

    Args:
        smoothing: The weight of the past in the moving average over steps, from 0 (the last
            step alone) to below 1. Default 0.9.

    Raises:
        ArgumentError: ``smoothing`` is out of range.

    Source: Molchanov et al., arXiv 1611.06440, the first-order criterion.

    Example:
        >>> score = TaylorScore(smoothing=0.5)
        >>> weight, gradient = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 4.0])
        >>> memory = score.observe(weight, gradient, None)
        >>> memory = score.observe(weight, torch.zeros(2), memory)
        >>> score.compute(weight, memory, uniform=torch.empty).tolist()
        [0.5, 2.0]
    """

    smoothing: float = number(0.9, least=0, below=1)
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        validate(self)

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the average, moved towards the present |w · g|."""
        now = (weight.detach() * gradient).abs_()
        return now if memory is None else memory.to(now).lerp_(now, 1 - self.smoothing)

    def compute(
        self, weight: torch.Tensor, memory: torch.Tensor | None, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the averages.

        Raises:
            PrunusError: No gradient has been observed yet.
        """
        if memory is None:
            raise PrunusError(
                "the Taylor score needs the gradient of at least one optimizer step before weights "
                f"are removed, but a tensor of shape {tuple(weight.shape)} has had none"
            )
        return memory


@dataclass(frozen=True)
class RandomScore:
    """A uniform random number: the baseline that any other score should beat.

    Args:
        seed: Two runs with the same seed remove the same weights.

    Raises:
        ArgumentError: ``seed`` is not a whole number.

    Example:
        >>> def uniform(seed: int) -> torch.Tensor:
        ...     return torch.full((3,), seed / 8)
        >>> RandomScore(seed=7).compute(torch.ones(3), None, uniform=uniform)
        tensor([0.8750, 0.8750, 0.8750])
    """

    seed: int = number(0, whole=True)
    uses_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        validate(self)

    def observe(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        memory: torch.Tensor | None,
    ) -> None:
        """Keep nothing."""

    def compute(
        self, weight: torch.Tensor, memory: torch.Tensor | None, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return uniform numbers in [0, 1)."""
        return uniform(self.seed)
