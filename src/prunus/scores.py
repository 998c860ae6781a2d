"""Scores: the order of removal, smallest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from prunus._utils.averages import update_average_
from prunus._utils.fields import number, validate

__all__ = [
    "FisherScore",
    "MagnitudeScore",
    "MovementScore",
    "RandomScore",
    "Score",
    "ScoreMemory",
    "SensitivityScore",
    "TaylorScore",
    "Uniform",
]


Uniform = Callable[[int], torch.Tensor]
"""Returns random numbers for a seed."""

ScoreMemory = Mapping[str, torch.Tensor]
"""What a score remembers of a tensor, or of a chunk of it: tensors of its shape, by name."""


class Score(Protocol):
    """Anything that computes the importance of each weight of a tensor.

    A score that uses gradients names what it remembers of them in :attr:`memory_names`. The pruner
    keeps a tensor of each name beside each weight tensor, of the same shape, in float32 at least,
    and saves it. Both methods work element by element, because they receive tensors in chunks.

    A score that predicts by how much the loss rises has an attribute ``loss_per_score``: that rise
    divided by the sum of the scores of the removed weights. It is reported beside the metric.

    A gradient with NaN or infinity leaves the memory as it is. On the CPU it is not counted either;
    on an accelerator, which nothing waits for, and in a sharded tensor it is.

    A score with an attribute ``every``, a whole number k of at least 1, is passed the first
    gradient of a tensor and each k-th one after it, and the others not, which saves time.
    """

    @property
    def memory_names(self) -> tuple[str, ...]:
        """Names of the tensors to remember; empty for a score that uses no gradient."""
        ...

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
    ) -> None:
        """Update the memory in place after a gradient of the loss.

        Called before each step, or after each call of the optimizer's closure, under
        ``torch.no_grad()``, unless :attr:`memory_names` is empty.

        Args:
            weight: The chunk, not to be changed. It and the gradient are in the memory's type.
            gradient: ∂L/∂w, not to be changed.
            memory: The memory by name, zeros at the first gradient.
            count: The number of observed gradients of this tensor, this one included.
        """
        ...

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the scores of a chunk of a tensor, of its shape.

        Args:
            weight: The chunk.
            memory: The same chunk of the memory, not to be changed. It is that of at least one
                gradient, unless :attr:`memory_names` is empty.
            uniform: Returns a random number from 0 to below 1 for each weight of the chunk, given a
                seed: the same at each call within one pruning, however the tensor is divided into
                chunks and shards, and others in the next pruning.
        """
        ...


@dataclass(frozen=True)
class _Memoryless:
    """A score that uses no gradient."""

    memory_names: ClassVar[tuple[str, ...]] = ()

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
    ) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class MagnitudeScore(_Memoryless):
    """|w|, the paper's score: the penalty has already made irrelevant weights small.

    Example:
        >>> MagnitudeScore().compute(torch.tensor([-2.0, 1.0]), {}, uniform=torch.empty).tolist()
        [2.0, 1.0]
    """

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the magnitudes."""
        return weight.abs()


@dataclass(frozen=True)
class RandomScore(_Memoryless):
    """A uniform random number: the baseline that any other score should beat.

    Args:
        seed: Two runs with the same seed remove the same weights.

    Raises:
        ArgumentError: ``seed`` is not a whole number.

    Example:
        >>> def uniform(seed: int) -> torch.Tensor:
        ...     return torch.full((3,), seed / 8)
        >>> RandomScore(seed=7).compute(torch.ones(3), {}, uniform=uniform)
        tensor([0.8750, 0.8750, 0.8750])
    """

    seed: int = number(0, whole=True)

    def __post_init__(self) -> None:
        validate(self)

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return uniform numbers in [0, 1)."""
        return uniform(self.seed)


@dataclass(frozen=True)
class TaylorScore:
    """|w · ∂L/∂w|, how much the loss would change, to first order, if the weight were removed.

    Args:
        smoothing: The weight of the past in the moving average over steps, from 0 (the last
            step alone) to below 1. Default 0.9. The average starts from the first step's value.

    Raises:
        ArgumentError: ``smoothing`` is out of range.

    Source: Molchanov et al., arXiv 1611.06440, the first-order criterion.

    Example:
        >>> score = TaylorScore(smoothing=0.5)
        >>> weight, memory = torch.tensor([2.0, -1.0]), {"product": torch.zeros(2)}
        >>> score.observe(weight, torch.tensor([0.5, 4.0]), memory, count=1)
        >>> score.observe(weight, torch.zeros(2), memory, count=2)
        >>> score.compute(weight, memory, uniform=torch.empty).tolist()
        [0.5, 2.0]
    """

    smoothing: float = number(0.9, least=0, below=1)
    memory_names: ClassVar[tuple[str, ...]] = ("product",)

    def __post_init__(self) -> None:
        validate(self)

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
    ) -> None:
        """Move the average towards the present |w · g|."""
        now = (weight * gradient).abs_()
        memory["product"].lerp_(now, 1.0 if count == 1 else 1 - self.smoothing)

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the averages."""
        return memory["product"]


@dataclass(frozen=True)
class FisherScore:
    """w² · F, proportional to what the loss would rise if the weight were removed.

    Removing w from a converged network raises the loss by about ½ · H · w², with H the second
    derivative. F, the moving average of (∂L/∂w)², stands in for H: it is the diagonal of the
    empirical Fisher information, up to a factor, because the gradient of a step is the mean over a
    batch. In a converged network the gradients of single examples nearly cancel, so that the square
    of the mean over B of them is B times smaller than the mean of their squares.

    F is the plain mean of the gradients' squares in the first 1 / (1 − smoothing) steps, and the
    exponential moving average from there on. It costs four bytes for each weight.

    The gradients of consecutive steps are samples of nearly the same distribution, so that a part
    of them suffices. With the default ``every`` the time for F falls to a quarter, and the loss
    right after a removal, 40 to 1,600 steps after the start, rose by at most 3 % on MNIST and Tiny
    Shakespeare.

    A float32 cannot hold the square of a gradient below 1e-22: such a weight scores 0, as one that
    the loss does not depend on at all, and equal scores are removed in order of position. Squares
    of gradients above 1.8e19 count as the largest number.

    Args:
        smoothing: The weight of the past in F, from 0 (the last step alone) to below 1. Default
            0.999, about the last 1,000 steps.
        exponent: The power of F in the score, at least 0. Default 1. With 0 the order is that of
            the magnitude; with ½ the gradient counts half as much as the weight.
        every: The number of steps from one gradient that F uses to the next, at least 1. Default 4.
            ``smoothing`` is per step whatever it is.
        examples: B, the number of examples in a step: the batch size, times the batches that are
            accumulated and the processes whose gradients are averaged. It scales what a removal is
            expected to cost, and does not change the order. Default 1, with which that is about B
            times too small.

    Raises:
        ArgumentError: An argument is out of range.

    Source: LeCun, Denker, Solla, "Optimal brain damage", NIPS 1989, with F for the Hessian's
    diagonal.

    Example:
        >>> score = FisherScore()
        >>> weight, memory = torch.tensor([2.0, -1.0]), {"fisher": torch.zeros(2)}
        >>> score.observe(weight, torch.tensor([0.5, 4.0]), memory, count=1)
        >>> score.observe(weight, torch.zeros(2), memory, count=2)
        >>> memory["fisher"].tolist()
        [0.125, 8.0]
        >>> score.compute(weight, memory, uniform=torch.empty).tolist()
        [0.5, 8.0]
    """

    smoothing: float = number(0.999, least=0, below=1)
    exponent: float = number(1.0, least=0)
    every: int = number(4, whole=True, least=1)
    examples: int = number(1, whole=True, least=1)
    memory_names: ClassVar[tuple[str, ...]] = ("fisher",)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def loss_per_score(self) -> float | None:
        """½ · B, the factor of w² · F in the second-order rise; None with an exponent."""
        return self.examples / 2 if self.exponent == 1 else None

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
    ) -> None:
        """Move F towards the present g²."""
        # The square of a large number is infinite; the average would be NaN at the next step, and
        # NaN it would stay.
        square = gradient.square().clamp_max_(torch.finfo(gradient.dtype).max)
        smoothing = self.smoothing**self.every
        update_average_(memory["fisher"], square, smoothing=smoothing, count=count)

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return w² · F^exponent."""
        # In this order w² is neither rounded to 16 bits nor out of range by itself.
        return memory["fisher"].pow(self.exponent).mul(weight).mul_(weight)


@dataclass(frozen=True)
class SensitivityScore:
    """Ī · Ū, PLATON's score: the mean sensitivity of the loss times its uncertainty.

    With I = |w · ∂L/∂w| of a step, Ī is its moving average and Ū that of |I − Ī|. A weight
    whose sensitivity varies from batch to batch has not been measured well yet and is kept longer.

    Both averages start from zero, as in the paper's code: if Ī started from the first I, the first
    Ū would be zero for every weight. They cost eight bytes for each weight.

    Args:
        smoothing: β₁, the weight of the past in Ī, above 0 (at which there would be no
            uncertainty) and below 1. Default 0.85, the paper's.
        uncertainty_smoothing: β₂, the weight of the past in Ū, from 0 to below 1. Default
            0.95, the paper's.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Zhang et al., arXiv 2206.12562.

    Example:
        >>> score = SensitivityScore(smoothing=0.5, uncertainty_smoothing=0.5)
        >>> weight = torch.tensor([2.0, -1.0])
        >>> memory = {"sensitivity": torch.zeros(2), "uncertainty": torch.zeros(2)}
        >>> score.observe(weight, torch.tensor([2.0, 4.0]), memory, count=1)
        >>> memory["sensitivity"].tolist(), memory["uncertainty"].tolist()
        ([2.0, 2.0], [1.0, 1.0])
        >>> score.observe(weight, torch.tensor([1.0, 0.0]), memory, count=2)
        >>> score.compute(weight, memory, uniform=torch.empty).tolist()
        [1.0, 1.0]
    """

    smoothing: float = number(0.85, above=0, below=1)
    uncertainty_smoothing: float = number(0.95, least=0, below=1)
    memory_names: ClassVar[tuple[str, ...]] = ("sensitivity", "uncertainty")

    def __post_init__(self) -> None:
        validate(self)

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
    ) -> None:
        """Move Ī towards the present I, then Ū towards |I − Ī|."""
        now = (weight * gradient).abs_()
        mean = memory["sensitivity"].lerp_(now, 1 - self.smoothing)
        memory["uncertainty"].lerp_(now.sub_(mean).abs_(), 1 - self.uncertainty_smoothing)

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return Ī · Ū."""
        return memory["sensitivity"] * memory["uncertainty"]


@dataclass(frozen=True)
class MovementScore:
    """The sum of −w · ∂L/∂w over all steps: weights that training moves towards zero go first.

    A score below zero belongs to a weight whose gradient steps have moved it towards zero, one
    above zero to a weight that they have moved away. The size of the weight counts as a factor
    only, so this score suits fine-tuning, where weights have a size before they have a use.

    In the paper removed weights go on scoring and may return; here they are removed for good. The
    penalty's own pull towards zero is not in the gradient of the loss. The sum costs four bytes for
    each weight.

    Source: Sanh, Wolf, Rush, arXiv 2005.07683, without the learning rate.

    Example:
        >>> score = MovementScore()
        >>> weight, memory = torch.tensor([2.0, -1.0]), {"movement": torch.zeros(2)}
        >>> score.observe(weight, torch.tensor([0.5, 4.0]), memory, count=1)
        >>> score.observe(weight, torch.tensor([0.5, -1.0]), memory, count=2)
        >>> score.compute(weight, memory, uniform=torch.empty).tolist()
        [-2.0, 3.0]
    """

    memory_names: ClassVar[tuple[str, ...]] = ("movement",)

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
    ) -> None:
        """Add the present −w · g."""
        memory["movement"].addcmul_(weight, gradient, value=-1)

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the sums."""
        return memory["movement"]
