"""Growth by exchange: the smallest weights are removed, and as many removed weights return."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from prunus._utils.fields import number
from prunus.growth.base import Growth, GrowthRule, MaskEditor
from prunus.schedules.base import hundredth
from prunus.scores import RandomScore, Score, ScoreMemory, Uniform

__all__ = ["GradientGrowth", "RandomGrowth"]


@dataclass(frozen=True)
class _LargestGradient:
    """−|∂L/∂w|: the largest gradient returns first."""

    memory_names: ClassVar[tuple[str, ...]] = ("gradient",)

    def observe(
        self, weight: torch.Tensor, gradient: torch.Tensor, memory: ScoreMemory, *, count: int
    ) -> None:
        """Keep nothing: the rule copies the gradient."""

    def compute(
        self, weight: torch.Tensor, memory: ScoreMemory, *, uniform: Uniform
    ) -> torch.Tensor:
        """Return the negative magnitudes."""
        return memory["gradient"].abs().neg_()


@dataclass(frozen=True, kw_only=True)
class _ExchangeGrowth(Growth):
    """The settings that both exchanges share."""

    every: int = number(100, whole=True, least=1)
    fraction: float = number(0.3, above=0, below=1)
    exchanges: ClassVar[bool] = True

    @abstractmethod
    def fraction_at(self, step: int) -> float:
        """Return the fraction of the kept weights to exchange after a step; 0 once it has ended."""

    @abstractmethod
    def ended_at(self, step: int) -> bool:
        """Return whether no exchange follows a step."""


@dataclass(frozen=True, kw_only=True)
class RandomGrowth(_ExchangeGrowth):
    """Exchanges the smallest weights of each tensor for random removed weights, every few steps.

    Weights return at zero, with cleared optimizer state, at positions that were removed before the
    exchange; all positions are equally likely. Each tensor keeps as many weights as before. If the
    schedule removes weights after the same step, it does so first.

    Args:
        every: Steps from one exchange to the next. Default 100.
        fraction: The fraction of each tensor's kept weights to exchange, above 0 and below 1;
            rounded, and at most as many as were removed. Default 0.3, the source's.
        until: The optimizer step, counted from the pruner's first, from which on nothing is
            exchanged. Default None: without end.
        seed: Two runs with the same seed choose the same positions. Default 0.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, "Scalable training of artificial neural
    networks with adaptive sparse connectivity", Nature Communications 9, 2018 (SET); the smallest
    magnitude stands in for the smallest positive and the largest negative weights.

    Example:
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> growth = RandomGrowth(every=1, fraction=0.5)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), growth=growth)
        >>> pruner.prune(kept=2)
        2
        >>> optimizer.step()                                      # 3 is exchanged for 1 or 2
        >>> layer.weight.tolist(), pruner.masks.kept, bool(pruner.masks["weight"][0, 2])
        ([[0.0, 0.0, 0.0, 4.0]], 2, False)
    """

    until: int | None = number(None, whole=True, least=1, optional=True)
    seed: int = number(0, whole=True)

    @classmethod
    def over(cls, total_steps: int) -> Self:
        """Return the settings for a training of this many steps: exchanges until its end.

        From one exchange to the next it takes a hundredth of the training, rounded down, at least 1
        and at most 100 steps: about a hundred exchanges in a training of up to 10,000 steps, and
        one every 100 steps in a longer one. At least one step follows the last exchange.

        Example:
            >>> RandomGrowth.over(5_000).every, RandomGrowth.over(50_000).every
            (50, 100)
        """
        return cls(every=hundredth(total_steps), until=total_steps)

    def fraction_at(self, step: int) -> float:
        """Return the fraction, or 0 at the end."""
        return 0.0 if self.ended_at(step) else self.fraction

    def ended_at(self, step: int) -> bool:
        """Return whether ``until`` is reached."""
        return self.until is not None and step >= self.until

    def rule(self, editor: MaskEditor, steps: Callable[[], int]) -> GrowthRule:
        """Return the rule."""
        return _ExchangeRule(self, RandomScore(self.seed), editor, steps)


@dataclass(frozen=True, kw_only=True)
class GradientGrowth(_ExchangeGrowth):
    """Exchanges the smallest weights of each tensor for removed weights of the largest gradients.

    The gradient is that of the loss with respect to the removed weight, at the step before the
    exchange: averaged over accumulation and processes, without the penalty. Weights return at zero,
    with cleared optimizer state; a weight does not return in the exchange that removes it. Each
    tensor keeps as many weights as before. A tensor without a gradient at that step is left alone.
    If the schedule removes weights after the same step, it does so first.

    The fraction of the kept weights that is exchanged falls along a cosine: after step t it is
    fraction / 2 · (1 + cos(π · t / until)).

    Args:
        every: Steps from one exchange to the next. Default 100, the source's.
        fraction: The fraction of each tensor's kept weights at the beginning, above 0 and below 1;
            rounded, and at most as many as were removed. Default 0.3, the source's.
        until: The optimizer step, counted from the pruner's first, from which on nothing is
            exchanged. The source uses three quarters of the training.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Evci, Gale, Menick, Castro, Elsen, RigL, arXiv 1911.11134; there the exchange takes the
    place of the optimizer's update.

    Example:
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> growth = GradientGrowth(every=1, fraction=0.5, until=3)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), growth=growth)
        >>> pruner.prune(kept=2)
        2
        >>> layer(torch.tensor([-5.0, 1.0, 1.0, 1.0])).backward()
        >>> optimizer.step()                                      # 0.375 · 2 is about 1
        >>> pruner.masks["weight"].tolist()
        [[True, False, False, True]]
    """

    until: int = number(whole=True, least=1)

    @classmethod
    def over(cls, total_steps: int) -> Self:
        """Return the settings for a training of this many steps: until three quarters of it.

        From one exchange to the next it takes a hundredth of the training, rounded down, at least 1
        and at most 100 steps: about 75 exchanges in a training of up to 10,000 steps, and one every
        100 steps in a longer one.

        Example:
            >>> GradientGrowth.over(50_000)
            GradientGrowth(every=100, fraction=0.3, until=37500)
        """
        return cls(every=hundredth(total_steps), until=max(1, round(0.75 * total_steps)))

    def fraction_at(self, step: int) -> float:
        """Return the fraction on the cosine, or 0 at the end."""
        if self.ended_at(step):
            return 0.0
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.until))

    def ended_at(self, step: int) -> bool:
        """Return whether ``until`` is reached."""
        return step >= self.until

    def rule(self, editor: MaskEditor, steps: Callable[[], int]) -> GrowthRule:
        """Return the rule."""
        return _ExchangeRule(self, _LargestGradient(), editor, steps)


class _ExchangeRule(GrowthRule):
    """Exchanges weights after each step that is due."""

    def __init__(
        self,
        growth: _ExchangeGrowth,
        returning: Score,
        editor: MaskEditor,
        steps: Callable[[], int],
    ) -> None:
        super().__init__(editor, steps)
        self._growth = growth
        self._returning = returning
        self._memory: dict[str, dict[str, torch.Tensor]] = {}

    def _is_due(self, step: int) -> bool:
        return not self.ended and step % self._growth.every == 0

    def before_step(self, tensors: Collection[str]) -> None:
        """Copy the gradients before those of removed weights are zeroed."""
        due = bool(self._returning.memory_names) and self._is_due(self.steps() + 1)
        # Of every tensor, because the schedule may remove the first weights after this very step.
        for name in tensors:
            self._memory.pop(name, None)
            gradient = self.editor.masks.selection[name].gradient if due else None
            if gradient is not None:
                self._memory[name] = {"gradient": gradient.clone()}

    def update(self) -> None:
        """Exchange weights if the step is due."""
        step, memory = self.steps(), self._memory
        if not self.ended and self._growth.ended_at(step):
            self.end()
        if not self._is_due(step):
            return
        masks, fraction = self.editor.masks, self._growth.fraction_at(step)
        counts = {}
        for name in masks.active():
            if self._returning.memory_names and name not in memory:
                continue
            kept = masks.kept_in(name)
            removed = masks.selection[name].prunable - kept
            counts[name] = min(round(fraction * kept), removed)
        counts = {name: count for name, count in counts.items() if count}
        if counts:
            self.editor.exchange(counts, returning=self._returning, memory=memory, seed=step)
        self._memory.clear()
