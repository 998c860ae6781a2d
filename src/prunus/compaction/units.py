"""Which positions of which dimensions have to be removed together.

Each position of each removable dimension has a unit, a number. Units that are tied, directly or by
way of others, form a class: all of it is removed or nothing. Unit 0 stands for what stays whatever
happens, so that to freeze is to tie to 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["FROZEN", "Reconsider", "Units"]

FROZEN = 0
"""The unit of positions that stay."""


class Reconsider(Exception):  # noqa: N818 - not an error
    """A choice turned out badly, and there is another to try."""


class Units:
    """Units, and the ties between them.

    Args:
        choices: For each place in the code where a dimension is split in several, which of them
            is to become smaller: 0 for the outermost. Remembered from one attempt to the next.

    Attributes:
        reasons: Why units were frozen, in the order in which it happened.

    Example:
        >>> units = Units()
        >>> one, other = units.fresh(3), units.fresh(3)
        >>> units.tie(one, other)
        >>> units.freeze(other[:1], "an output of the model")
        >>> units.classes().tolist(), units.reasons
        ([0, 0, 2, 3, 0, 2, 3], ['an output of the model'])
    """

    def __init__(self, choices: dict[str, int] | None = None) -> None:
        self._count = 1
        self._choices = {} if choices is None else choices
        self._chosen: list[tuple[torch.Tensor, str, int]] = []
        self._ties: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._reasons: dict[str, None] = {}

    @property
    def reasons(self) -> list[str]:
        """Why units were frozen, each reason once."""
        return list(self._reasons)

    def fresh(self, count: int) -> torch.Tensor:
        """Return new units, tied to nothing."""
        made = torch.arange(self._count, self._count + count)
        self._count += count
        return made

    def tie(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Tie units pair by pair."""
        if one is not other:
            other = other.expand_as(one) if one.numel() >= other.numel() else other
            self._ties.append((one.expand_as(other).reshape(-1), other.reshape(-1)))

    def freeze(self, units: torch.Tensor, reason: str = "") -> None:
        """Let units stay, and all that is tied to them."""
        self.tie(units, torch.zeros_like(units))
        if reason:
            self._reasons[reason] = None

    def choose(self, place: str, options: list[torch.Tensor]) -> int:
        """Choose one of several ways to see the same units, by their place in the code."""
        choice = self._choices.setdefault(place, 0) % len(options)
        self._chosen.append((torch.cat([o.reshape(-1) for o in options]), place, len(options)))
        return choice

    def regret(self, units: torch.Tensor) -> None:
        """Say that units have to be frozen for how the dimension that they come from was split.

        Raises:
            Reconsider: There is another way, to be tried from the beginning.
        """
        for chosen, place, options in self._chosen:
            # The last option is left for the first, for good.
            if self._choices[place] < options and bool(torch.isin(units, chosen).any()):
                self._choices[place] += 1
                raise Reconsider

    def classes(self) -> torch.Tensor:
        """Return the class of each unit: the smallest unit that is tied to it."""
        root: npt.NDArray[np.int64] = np.arange(self._count)
        if self._ties:
            one = torch.cat([pair[0] for pair in self._ties]).numpy()
            other = torch.cat([pair[1] for pair in self._ties]).numpy()
            # Hang the larger of two roots onto the smaller until all ties lie within one tree.
            while True:
                left, right = root[one], root[other]
                apart = left != right
                if not apart.any():
                    break
                one, other = one[apart], other[apart]
                high = np.maximum(left[apart], right[apart])
                np.minimum.at(root, high, np.minimum(left[apart], right[apart]))
                while (root != (higher := root[root])).any():
                    root = higher
        return torch.from_numpy(root)
