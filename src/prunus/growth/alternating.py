"""Alternating phases: sparse ones, in which the masks hold, and dense ones, without masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from prunus._utils.fields import number
from prunus.growth.base import Growth, GrowthRule, MaskEditor

__all__ = ["AlternatingGrowth"]


@dataclass(frozen=True, kw_only=True)
class AlternatingGrowth(Growth):
    """Sparse and dense phases alternate, and the last one is sparse.

    In a sparse phase removed weights are zero. When a dense phase begins they return at zero, with
    cleared optimizer state, and all weights train freely. When it ends, the weights with the
    smallest scores are removed over all tensors, until as many are kept as the schedule has asked
    for. A removal that the schedule or :meth:`Pruner.prune <prunus.Pruner.prune>` asks for during a
    dense phase takes place when the phase ends.

    In a dense phase the network is dense: a validation reports a sparsity of 0, and a state is
    compared with others by the number of weights that it has.

    The first phase is sparse. Until the schedule has removed weights all phases are dense, so that
    the source's warm-up is a schedule that begins later: ``OneShot(sparsity=0.9, at=1000)``.

    Args:
        sparse: Optimizer steps in a sparse phase.
        dense: Optimizer steps in a dense phase.
        until: The optimizer step, counted from the pruner's first, after which the masks hold for
            good.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Peste, Iofinova, Vladu, Alistarh, AC/DC, arXiv 2106.12379.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> growth = AlternatingGrowth(sparse=2, dense=1, until=5)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), growth=growth)
        >>> sparsities = [float(pruner.prune(sparsity=0.75) and pruner.sparsity)]
        >>> for _ in range(6):
        ...     layer(torch.ones(4)).backward()
        ...     optimizer.step()
        ...     sparsities.append(pruner.sparsity)
        >>> sparsities
        [0.75, 0.75, 0.0, 0.75, 0.75, 0.75, 0.75]
    """

    sparse: int = number(whole=True, least=1)
    dense: int = number(whole=True, least=1)
    until: int = number(whole=True, least=1)

    @classmethod
    def over(cls, total_steps: int) -> Self:
        """Return the settings for a training of this many steps.

        Phases are a twentieth of it, and the last one is sparse from 17 twentieths on, as in the
        source's training of 100 epochs.
        """
        phase = max(1, round(total_steps / 20))
        return cls(sparse=phase, dense=phase, until=max(1, round(0.85 * total_steps)))

    def is_dense_after(self, step: int) -> bool:
        """Return whether the phase after an optimizer step is dense; the first step is 1.

        Example:
            >>> growth = AlternatingGrowth(sparse=2, dense=3, until=8)
            >>> [growth.is_dense_after(step) for step in range(9)]
            [False, False, True, True, True, False, False, True, False]
        """
        return step < self.until and step % (self.sparse + self.dense) >= self.sparse

    def rule(self, editor: MaskEditor, steps: Callable[[], int]) -> GrowthRule:
        """Return the rule."""
        return _AlternatingRule(self, editor, steps)


class _AlternatingRule(GrowthRule):
    """Reopens the masks for dense phases, and removes weights again for sparse ones."""

    def __init__(
        self, growth: AlternatingGrowth, editor: MaskEditor, steps: Callable[[], int]
    ) -> None:
        super().__init__(editor, steps)
        self._growth = growth

    def _is_dense(self) -> bool:
        return not self.ended and self._growth.is_dense_after(self.steps())

    def update(self) -> None:
        """Begin the phase that the step asks for, if it is another one."""
        if self.ended:
            return
        masks = self.editor.masks
        if self._is_dense():
            if masks.kept < masks.selection.prunable:
                # Fewer than the schedule asked for if the masks were sparse from the beginning.
                self.target = min(masks.kept, masks.kept if self.target is None else self.target)
                self.editor.clear_removed()
                self.editor.reopen()
        else:
            self._remove_to_target()
        if self.steps() >= self._growth.until:
            self.end()

    def remove(self, kept: int, final: int | None) -> None:
        """Remove weights now, or in a dense phase at its end."""
        if not self.ended and self._is_dense():
            self.editor.check(kept)  # an error belongs to this call, not to a later step
        else:
            super().remove(kept, final)
        if not self.ended:
            self.target = min(kept, kept if self.target is None else self.target)

    def restored(self) -> None:
        """Forget how many weights to keep: the restored state has as many as it had then."""
        self.target = None

    def end(self) -> None:
        """End a dense phase, and let no weight return from now on."""
        if not self.ended:
            self._remove_to_target()
        super().end()

    def _remove_to_target(self) -> None:
        """Remove the weights that have returned."""
        if self.target is not None and self.target < self.editor.masks.kept:
            self.editor.keep(self.target, self.editor.final)
