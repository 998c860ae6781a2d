"""Coupling between units: groups of tensor positions that can only be removed together.

A unit is one position of one removable dimension, for example one output neuron in a weight, a bias
or an activation; it is identified by a number. Operators couple units: the rows of a weight with
the elements of its bias, or the channels of both terms of a residual sum. Coupled units, directly
or through other units, form a group that is removed as a whole or kept as a whole. This is the
grouping of a dependency graph (DepGraph, https://arxiv.org/abs/2301.12900), at the level of
single positions instead of whole layers.

Unit 0 stands for everything that is kept, so protecting a unit means coupling it with unit 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["PROTECTED", "Backtrack", "Coupling"]

PROTECTED = 0
"""The unit that is always kept, with every unit coupled to it."""


class Backtrack(Exception):  # noqa: N818 - control flow, not an error
    """Raised when a choice of dimension fails and an alternative remains to be tried."""


class Coupling:
    """Units and the couplings between them.

    Args:
        choices: For each source location at which one dimension is split into several, the index
            of the dimension that becomes smaller, 0 for the outermost. Updated in place, so that
            the next attempt starts from it. Default: a new dictionary.

    Example:
        >>> coupling = Coupling()
        >>> first, second = coupling.new_units(3), coupling.new_units(3)
        >>> coupling.couple(first, second)
        >>> coupling.protect(second[:1], "an output of the model")
        >>> coupling.groups().tolist(), coupling.reasons
        ([0, 0, 2, 3, 0, 2, 3], ['an output of the model'])
    """

    def __init__(self, choices: dict[str, int] | None = None) -> None:
        self._count = 1
        self._choices = {} if choices is None else choices
        self._chosen: list[tuple[torch.Tensor, str, int]] = []
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._reasons: dict[str, None] = {}

    @property
    def reasons(self) -> list[str]:
        """Why units were protected: each reason once, in order of appearance."""
        return list(self._reasons)

    def new_units(self, count: int) -> torch.Tensor:
        """Return new units, coupled with no other unit."""
        units = torch.arange(self._count, self._count + count)
        self._count += count
        return units

    def couple(self, first: torch.Tensor, second: torch.Tensor) -> None:
        """Couple two tensors of units element by element, with broadcasting."""
        if first is not second:
            if first.numel() >= second.numel():
                second = second.expand_as(first)
            self._pairs.append((first.expand_as(second).reshape(-1), second.reshape(-1)))

    def merge(self, units: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """Couple units that several tensors have at one dimension of an output.

        Args:
            units: The units of each tensor, or None where the dimension cannot become smaller.

        Returns:
            The units of the output. If one of the tensors has none, then None: the units of the
            others are protected.
        """
        present = [one for one in units if one is not None]
        for one in present:
            self.couple(one, present[0])
        if present and len(present) < len(units):
            self.protect(present[0])
            return None
        return present[0] if present else None

    def protect(self, units: torch.Tensor, reason: str = "") -> None:
        """Keep units and every unit coupled with them.

        Args:
            units: The units.
            reason: Why they cannot be removed, for the report. Default: not reported.
        """
        self.couple(units, torch.zeros_like(units))
        if reason:
            self._reasons[reason] = None

    def choose(self, location: str, options: list[torch.Tensor]) -> int:
        """Return the index of the dimension that becomes smaller where one is split into several.

        A view of 8 features as 2 heads of 4 features, for example, can lose whole heads, or the
        same features of each head.

        Args:
            location: The source location that identifies the choice.
            options: The units, for each dimension with its positions in the rows.

        Returns:
            The index into ``options``: 0 at first, a later one after :meth:`backtrack`.
        """
        choice = self._choices.setdefault(location, 0) % len(options)
        units = torch.cat([option.reshape(-1) for option in options])
        self._chosen.append((units, location, len(options)))
        return choice

    def backtrack(self, units: torch.Tensor) -> None:
        """Advance the first choice that involves these units, if it has an option left.

        Args:
            units: Units that would have to be protected because of how their dimension was split.

        Raises:
            Backtrack: A choice was advanced, so the analysis has to start again.
        """
        for chosen, location, options in self._chosen:
            # After the last option the first one is used again, for good.
            if self._choices[location] < options and bool(torch.isin(units, chosen).any()):
                self._choices[location] += 1
                raise Backtrack

    def groups(self) -> torch.Tensor:
        """Return the group of each unit, identified by the smallest unit in it."""
        root: npt.NDArray[np.int64] = np.arange(self._count)
        if self._pairs:
            first = torch.cat([pair[0] for pair in self._pairs]).numpy()
            second = torch.cat([pair[1] for pair in self._pairs]).numpy()
            # Attach the larger of two roots to the smaller until each pair is within one tree.
            while True:
                left, right = root[first], root[second]
                apart = left != right
                if not apart.any():
                    break
                first, second = first[apart], second[apart]
                high = np.maximum(left[apart], right[apart])
                np.minimum.at(root, high, np.minimum(left[apart], right[apart]))
                while (root != (higher := root[root])).any():
                    root = higher
        return torch.from_numpy(root)
