"""The interface of growth: its settings, and the rule that acts around each optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch

from prunus._utils.checks import number_problem, type_problem
from prunus._utils.fields import validate
from prunus.masks import Masks
from prunus.scores import Score, ScoreMemory

__all__ = ["Growth", "GrowthRule", "MaskEditor", "NoGrowth"]


class MaskEditor(Protocol):
    """The changes of masks that a growth is composed of.

    All processes that train the model must make the same calls, and all make the same choice.
    Nothing is changed if a call raises an error.
    """

    @property
    def masks(self) -> Masks:
        """The masks."""
        ...

    @property
    def final(self) -> int | None:
        """How many weights the schedule keeps in the end; None if that is open."""
        ...

    def keep(self, kept: int, final: int | None) -> None:
        """Remove the weights with the smallest scores until ``kept`` are left, for good.

        Args:
            kept: How many weights to keep.
            final: How many are kept in the end, for the allocation; None if that is open.
        """
        ...

    def check(self, kept: int) -> None:
        """Check that :meth:`keep` may keep so few weights, by all but the scores' values.

        Nothing is changed. ``final`` is that of the schedule.
        """
        ...

    def reselect(self, kept: int) -> None:
        """Keep the ``kept`` weights with the largest scores of all, also of removed ones.

        Only the masks are changed.
        """
        ...

    def reopen(self) -> None:
        """Keep every weight; removed ones return at zero."""
        ...

    def exchange(
        self,
        counts: Mapping[str, int],
        *,
        returning: Score,
        memory: Mapping[str, ScoreMemory],
        seed: int,
    ) -> None:
        """Remove weights of the smallest magnitude, and let as many removed ones return at zero.

        Args:
            counts: How many, by tensor; at most as many as are kept and as were removed. Tensors
                without an entry stay as they are.
            returning: The order of return, smallest first.
            memory: The memory of this score by tensor.
            seed: Distinguishes this exchange from others, for scores that draw random numbers.
        """
        ...

    def clear_removed(self) -> None:
        """Clear gradient and optimizer state of every removed weight."""
        ...


class GrowthRule:
    """The rule of a growth: its actions before and after each optimizer step, and its state.

    A subclass that keeps its defaults lets nothing return.

    Args:
        editor: Changes the masks.
        steps: Returns how many steps the optimizer has taken, those that were skipped excluded.

    Attributes:
        ended: Whether no weight returns any more.
        target: How many weights to keep in sparse phases, for rules that reopen masks; else None.
        latent: The values that removed weights would have, by tensor, for rules that train them.
    """

    keeps_latent: ClassVar[bool] = False
    """Whether the rule may have entries in :attr:`latent`."""

    def __init__(self, editor: MaskEditor, steps: Callable[[], int]) -> None:
        self.editor = editor
        self.steps = steps
        self.ended = False
        self.target: int | None = None
        self.latent: dict[str, torch.Tensor] = {}

    @property
    def masks_hold(self) -> bool:
        """Whether removed weights are without gradient, and zero after the optimizer's update."""
        return True

    def before_closure(self) -> None:
        """Prepare the weights for the forward pass of a closure, within the optimizer's step."""

    def before_step(self, tensors: Collection[str]) -> None:
        """Act on weights and gradients before anything else changes them.

        With a closure, called after each call of it.

        Args:
            tensors: The names of the tensors that the step moves, those of one optimizer.
        """

    def after_step(self) -> None:
        """Act on the weights that the optimizer and a decoupled penalty have moved."""

    def update(self) -> None:
        """Change the masks, once the step has been counted and the schedule has removed weights."""

    def remove(self, kept: int, final: int | None) -> None:
        """Remove weights until ``kept`` are left, as the schedule or the caller asks.

        Args:
            kept: How many weights to keep.
            final: How many are kept in the end, for the allocation; None if that is open.
        """
        self.editor.keep(kept, final)

    def restored(self) -> None:
        """Adapt to weights and masks that were restored from an earlier state."""

    def end(self) -> None:
        """Let no weight return from now on."""
        self.ended = True

    def state_dict(self) -> dict[str, Any]:
        """Return the plain values of the state, without :attr:`latent`."""
        return {"ended": self.ended, "target": self.target}

    def problem(self, state: Mapping[str, Any]) -> str | None:
        """Return why :meth:`load_state_dict` cannot load a state, or None."""
        if set(state) != set(self.state_dict()):
            return (
                f"the rule of growth must have the entries {sorted(self.state_dict())}, but has "
                f"{sorted(state)}"
            )
        if "ended" not in state:
            return None
        problem = type_problem("ended", state["ended"], bool, "a bool")
        target = number_problem("target", state["target"], whole=True, least=0, optional=True)
        return problem or target

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.ended, self.target = state["ended"], state["target"]


class NoGrowth(GrowthRule):
    """The rule without growth: removed weights stay removed, and there is no state."""

    def __init__(self, editor: MaskEditor, steps: Callable[[], int]) -> None:
        super().__init__(editor, steps)
        self.ended = True

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load nothing."""


@dataclass(frozen=True)
class Growth(ABC):
    """The settings of a growth, from which a pruner builds its rule.

    Growth decides which weights are kept, the schedule how many. A custom one implements
    :meth:`over` and :meth:`rule`.
    """

    trains_removed: ClassVar[bool] = False
    """Whether the optimizer moves removed weights, unlike what the forward pass sees."""

    exchanges: ClassVar[bool] = False
    """Whether single weights are exchanged for others, so that patterns would not be kept."""

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    @abstractmethod
    def over(cls, total_steps: int) -> Self:
        """Return the settings for a training of this many optimizer steps."""

    @abstractmethod
    def rule(self, editor: MaskEditor, steps: Callable[[], int]) -> GrowthRule:
        """Return the rule; the arguments are those of :class:`GrowthRule`."""
