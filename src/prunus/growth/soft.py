"""Soft pruning: the optimizer also trains removed weights, which return when they are large."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from prunus._utils.batches import batches
from prunus._utils.fields import number
from prunus.growth.base import Growth, GrowthRule, MaskEditor
from prunus.masks import clear_all_
from prunus.schedules.base import hundredth

__all__ = ["SoftGrowth"]


@dataclass(frozen=True, kw_only=True)
class SoftGrowth(Growth):
    """Removed weights are zero in the forward pass, and the optimizer trains them all the same.

    The forward pass, validation and what is delivered see the sparse weights. The gradient that
    they get is applied to the dense weights (a straight-through estimator): the pruner stores the
    values of removed weights, puts them into the parameters for the optimizer's update, and takes
    them out after it. After each step the kept weights are chosen again by the pruner's score,
    which sees the dense weights; as many are kept as the schedule has left. After step ``until``
    the choice is final: removed weights are zero for good, and their values are dropped.

    It costs a copy of each tensor that has lost weights.

    Args:
        until: The last optimizer step, counted from the pruner's first, after which removed weights
            may return.
        every: Steps from one choice to the next. Default 1. The source uses 16, which costs less: a
            choice reads all weights several times and waits for the device. The longer removed
            weights train unseen, the more of them return at once.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Lin, Stich, Barba, Dmitriev, Jaggi, "Dynamic model pruning with feedback", arXiv
    2006.07253.

    Example:
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 3.0]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> growth = SoftGrowth(until=100)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), growth=growth)
        >>> pruner.prune(kept=1)
        1
        >>> layer.weight.tolist()
        [[0.0, 3.0]]
        >>> (layer(torch.ones(2)) * torch.tensor([-1.0])).backward()    # its gradient is -1, -1
        >>> layer.weight.grad[0, 0] *= 4
        >>> optimizer.step()                          # the dense weights are 5 and 4
        >>> layer.weight.tolist()
        [[5.0, 0.0]]
    """

    until: int = number(whole=True, least=1)
    every: int = number(1, whole=True, least=1)
    trains_removed: ClassVar[bool] = True

    @classmethod
    def over(cls, total_steps: int) -> Self:
        """Return the settings for a training of this many steps: until three quarters of it.

        At most 16 steps from one choice to the next, and at most a hundredth of the training.
        """
        every = hundredth(total_steps, most=16)
        return cls(until=max(1, round(0.75 * total_steps)), every=every)

    def rule(self, editor: MaskEditor, steps: Callable[[], int]) -> GrowthRule:
        """Return the rule."""
        return _SoftRule(self, editor, steps)


class _SoftRule(GrowthRule):
    """Exchanges the sparse weights for the dense ones during the optimizer's update."""

    keeps_latent: ClassVar[bool] = True

    def __init__(self, growth: SoftGrowth, editor: MaskEditor, steps: Callable[[], int]) -> None:
        super().__init__(editor, steps)
        self._growth = growth
        self._dense = False
        """Whether the parameters hold the dense weights now."""

    @property
    def masks_hold(self) -> bool:
        """Whether removed weights are final."""
        return self.ended

    def before_closure(self) -> None:
        """Let the forward pass see the sparse weights."""
        self._hide()

    def before_step(self, tensors: Collection[str]) -> None:
        """Let the optimizer move the dense weights."""
        del tensors  # the others are hidden again as they were
        self._show()

    def after_step(self) -> None:
        """Leave the sparse weights in the parameters."""
        self._hide()

    def update(self) -> None:
        """Choose again every few steps, and for the last time at the end."""
        if self.ended:
            return
        step, until = self.steps(), self._growth.until
        if step % self._growth.every == 0 or step >= until:
            self._choose(self.editor.masks.kept)
        if step >= until:
            self.end()

    def remove(self, kept: int, final: int | None) -> None:
        """Choose which weights to keep among all of them, by their dense values."""
        if self.ended:
            super().remove(kept, final)
        else:
            self._choose(min(kept, self.editor.masks.kept))

    def restored(self) -> None:
        """Drop the values of removed weights, which belong to the weights before."""
        self.latent.clear()
        self._dense = False

    def end(self) -> None:
        """Make the choice final."""
        if not self.ended:
            self.latent.clear()
            self.editor.clear_removed()
        super().end()

    def _choose(self, kept: int) -> None:
        self._show()
        try:
            self.editor.reselect(kept)
        finally:
            self._hide()

    @torch.no_grad()
    def _show(self) -> None:
        """Put the dense weights into the parameters."""
        if self._dense or self.ended:
            return
        self._dense, masks = True, self.editor.masks
        weights = [masks.selection[name].weight for name in self.latent]
        for batch in batches(
            weights,
            [masks[name] for name in self.latent],
            [t.to(w.device) for t, w in zip(self.latent.values(), weights, strict=True)],
        ):
            (weight,), (mask,), (latent,) = batch.load(0), batch.load(1), batch.load(2)
            # Chosen, not added: a kept weight that was changed since has its new value.
            batch.store([0], [torch.where(mask, weight, latent)])

    @torch.no_grad()
    def _hide(self) -> None:
        """Store the values of removed weights, and set the weights to zero."""
        if not self._dense:
            return
        self._dense, before, self.latent = False, self.latent, {}
        active = self.editor.masks.active()
        weights = [self.editor.masks.selection[name].weight for name in active]
        for name, weight in zip(active, weights, strict=True):
            latent = before.get(name)
            if latent is None or latent.device != weight.device:
                latent = torch.empty_like(weight)
            self.latent[name] = latent
        for batch in batches(list(self.latent.values()), weights):
            torch._foreach_copy_(batch.operands[0], batch.operands[1])
        clear_all_(list(self.latent.values()), list(active.values()), inverted=True)
        clear_all_(weights, list(active.values()))
