"""The editor of masks: removals, reselections and exchanges, with all that belongs to a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from prunus._distributed.process_group import CheckEqual, failure_reported
from prunus._engine.gradients import separate_elements
from prunus._engine.optimizer_state import clear_state
from prunus._engine.optimizers import Optimizers
from prunus._engine.removal import Removal, Remover
from prunus.masks import Masks, clear_
from prunus.scores import MagnitudeScore, Score, ScoreMemory

__all__ = ["Editor"]

_KEPT = "number of weights to keep"


class Editor:
    """Changes masks, and clears weights, gradients and optimizer state accordingly.

    Args:
        masks: The masks.
        optimizers: The optimizers, whose state is cleared.
        remover: Returns the remover for the present state.
        remainders: Returns the penalty's float32 remainders by tensor.
        final: Returns how many weights the schedule keeps in the end; None if that is open.
        removed: Called after each removal with the rise of the loss that the score predicts; None
            if it predicts none.
        check_equal: Checks that other processes, which have the same model, have the same numbers
            about what is to be changed; None without such processes.
    """

    def __init__(
        self,
        masks: Masks,
        optimizers: Optimizers,
        *,
        remover: Callable[[], Remover],
        remainders: Callable[[], Mapping[str, torch.Tensor]],
        final: Callable[[], int | None],
        removed: Callable[[float | None], None],
        check_equal: CheckEqual | None,
    ) -> None:
        self.masks = masks
        self._optimizers = optimizers
        self._remover = remover
        self._remainders = remainders
        self._final = final
        self._removed = removed
        self._check_equal = check_equal

    @property
    def final(self) -> int | None:
        """How many weights the schedule keeps in the end; None if that is open."""
        return self._final()

    def mask_to(self, kept: int, final: int | None) -> Removal:
        """Update the masks alone to keep ``kept`` weights, and ``final`` in the end."""
        return self._remover().keep(kept, self._check_equal, final=final)

    def check(self, kept: int) -> None:
        """Check that :meth:`keep` may keep so few weights, given the present masks.

        Raises:
            PrunusError: ``min_density`` or the allocation forbids it, the score needs gradients and
                has not observed any of some tensor, or other processes do not keep as many.
            PeerError: Another process did not answer.
        """
        with failure_reported(self._check_equal, [_KEPT]):
            self._remover().check(kept, final=self.final)
        if self._check_equal is not None:
            self._check_equal({_KEPT: float(kept)})

    def keep(self, kept: int, final: int | None) -> None:
        """Remove the weights with the smallest scores until ``kept`` are left, for good.

        Args:
            kept: How many weights to keep.
            final: How many are kept in the end, for the allocation; None if that is open.
        """
        removal = self.mask_to(kept, final)
        for name in removal.tensors:
            self._clear(name, self.masks[name])
        if removal.tensors:
            self._removed(removal.predicted_cost)

    def clear_removed(self) -> None:
        """Clear gradient and optimizer state of every removed weight."""
        for name, mask in self.masks.active().items():
            self._clear(name, mask)

    def clear_returned(self, removed: Mapping[str, torch.Tensor]) -> None:
        """Clear the optimizer state of weights that are kept now and were removed before.

        While a weight is removed, its state depends on the device and the size of the tensor
        (:class:`~prunus._engine.second_moments.SecondMoments`).

        Args:
            removed: True where a weight was removed, by tensor.
        """
        for name, before in removed.items():
            mask = self.masks[name]
            returned = before.to(mask.device) & mask
            clear_state(self._optimizers.of(name), self.masks.selection[name].parameter, ~returned)

    def reopen(self) -> None:
        """Keep every weight; removed ones return at zero."""
        for name in self.masks:
            self.masks[name].fill_(True)
        self.masks.recount()

    def reselect(self, kept: int) -> None:
        """Keep the ``kept`` weights with the largest scores of all, in the masks alone."""
        before = {name: mask.clone() for name, mask in self.masks.items()}
        kept_before = self.masks.kept
        self.reopen()
        try:
            self.mask_to(kept, self.final)
        except BaseException:
            for name, mask in before.items():
                self.masks[name].copy_(mask)
            self.masks.recount()
            raise
        if kept < kept_before:
            # The score's prediction would include the weights that had been removed before.
            self._removed(None)

    @torch.no_grad()
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
            counts: How many, by tensor; at most as many as are kept and as were removed.
            returning: The order of return, smallest first.
            memory: The memory of this score by tensor.
            seed: Distinguishes this exchange from others, for scores that draw random numbers.

        Raises:
            PrunusError: Processes have different weights or gradients.
            NonFiniteError: A weight or a score is NaN.
            PeerError: Another process did not answer.
        """
        dropped, returned = Masks(self.masks.selection), Masks(self.masks.selection)
        for name, mask in self.masks.items():
            dropped[name].copy_(mask)
            torch.logical_not(mask, out=returned[name])
        # Both choices are complete before the first mask is changed, so that an error changes
        # nothing.
        with failure_reported(self._check_equal, map(_digest_name, self.masks)):
            Remover(dropped, MagnitudeScore(), {}).choose(counts)
            Remover(returned, returning, memory, seed=seed).choose(counts)
        if self._check_equal is not None:
            self._check_equal(_digests(dropped, returned))
        for name in counts:
            mask = self.masks[name]
            stayed = mask & ~dropped[name]
            mask.copy_(stayed | returned[name])
            self._clear(name, stayed)
        self.masks.recount()

    def _clear(self, name: str, mask: torch.Tensor) -> None:
        """Clear all that belongs to the weights of a tensor where ``mask`` is False."""
        tensor = self.masks.selection[name]
        clear_(tensor.weight, mask)
        separate_elements([tensor.parameter])
        if tensor.gradient is not None:
            clear_(tensor.gradient, mask)
        clear_state(self._optimizers.of(name), tensor.parameter, mask)
        remainder = self._remainders().get(name)
        if remainder is not None:
            clear_(remainder, mask.to(remainder.device))


def _digests(*chosen: Masks) -> dict[str, float]:
    """Return, for each tensor, a number that depends on which of its weights are chosen."""
    digests: dict[str, Any] = {}
    for name in chosen[0]:
        sums = [int((masks[name].reshape(-1).nonzero() + 1).sum()) for masks in chosen]
        # As far as a float64 holds a whole number exactly.
        digests[_digest_name(name)] = float(sum(sums) % (1 << 52))
    return digests


def _digest_name(name: str) -> str:
    return f"weights of {name} to exchange (the sum of their positions)"
