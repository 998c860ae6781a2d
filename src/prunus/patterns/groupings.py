"""Groupings: the division of a matrix into groups of weights, and which of them may be removed.

A grouping reads slabs of whole groups: consecutive rows of the matrix, or of the shard of it that a
process holds. It never depends on how the matrix is divided into slabs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import pad

__all__ = ["Blocks", "Grouping", "Groups", "LargestOfEach"]


class Groups(NamedTuple):
    """The scores of a slab, as vectors: of its groups, or of its weights.

    Attributes:
        scores: The scores.
        candidates: True where the group or the weight may be removed.
        sizes: How many kept weights each group has; None for single weights.
    """

    scores: torch.Tensor
    candidates: torch.Tensor
    sizes: torch.Tensor | None = None


class Grouping(ABC):
    """The division of a matrix into groups.

    Attributes:
        height: The number of rows that a group extends over.
        width: The number of its columns.
    """

    height: int
    width: int

    @property
    @abstractmethod
    def most_removed(self) -> int:
        """The largest number of weights that are removed together."""

    @abstractmethod
    def groups(self, scores: torch.Tensor, kept: torch.Tensor) -> Groups:
        """Return what may be removed from a slab, with its scores.

        Args:
            scores: The scores of the weights, of shape (rows, columns).
            kept: True where a weight is kept and may be removed.
        """

    @abstractmethod
    def spread(self, chosen: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return the weights of chosen groups, of shape (rows, columns).

        Args:
            chosen: True for the groups, or the weights, in the order of :meth:`groups`.
            rows: The number of rows of the slab.
            columns: The number of its columns.
        """

    def fewest(self, kept: torch.Tensor) -> int:
        """Return how many of the kept weights of a slab are never removed."""
        return 0


@dataclass(frozen=True)
class Blocks(Grouping):
    """Blocks of ``height`` × ``width``, each of which is removed as a whole.

    The score of a block is the mean of the scores of its kept weights. It is computed in float64
    and rounded to float32, or stays in float64 if the scores are. Blocks at the last rows and
    columns may be smaller.

    Example:
        >>> scores = torch.tensor([[1.0, 3.0, 5.0]])
        >>> kept = torch.tensor([[True, True, False]])
        >>> groups = Blocks(1, 2).groups(scores, kept)
        >>> groups.scores.tolist(), groups.candidates.tolist(), groups.sizes.tolist()
        ([2.0, 0.0], [True, False], [2, 0])
        >>> Blocks(1, 2).spread(torch.tensor([True, False]), 1, 3).tolist()
        [[True, True, False]]
    """

    height: int
    width: int

    @property
    def most_removed(self) -> int:
        """All weights of a block."""
        return self.height * self.width

    def groups(self, scores: torch.Tensor, kept: torch.Tensor) -> Groups:
        """Return the mean score and the size of each block."""
        sizes = self._sums(kept, torch.int64)
        sums = self._sums(scores.where(kept, 0.0), torch.float64)
        mean = sums.div_(sizes.clamp(min=1))
        mean = mean.to(torch.promote_types(scores.dtype, torch.float32))
        return Groups(mean, sizes > 0, sizes)

    def _sums(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        rows, columns = self._counts(*values.shape)
        last_rows, last_columns = rows * self.height, columns * self.width
        if (last_rows, last_columns) != values.shape:
            missing = (0, last_columns - values.shape[1], 0, last_rows - values.shape[0])
            values = pad(values, missing)
        blocks = values.reshape(rows, self.height, columns, self.width)
        return blocks.sum((1, 3), dtype=dtype).reshape(-1)

    def _counts(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many blocks there are, above and beside each other."""
        return -(-rows // self.height), -(-columns // self.width)

    def spread(self, chosen: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return all weights of the chosen blocks."""
        above, beside = self._counts(rows, columns)
        blocks = chosen.view(above, 1, beside, 1).expand(above, self.height, beside, self.width)
        whole = blocks.reshape(above * self.height, beside * self.width)
        return whole[:rows, :columns]


@dataclass(frozen=True)
class LargestOfEach(Grouping):
    """Groups of ``m`` consecutive weights, of which the ``n`` largest scores are never removed.

    A smaller group at the end, of s weights, keeps n · s / m of them, rounded up. Of equal scores
    the earlier may be removed.

    Args:
        n: How many weights of a group are kept.
        m: How many weights a group has.
        rows: Whether a group is part of a column, and extends over ``m`` rows; else it is part of a
            row.

    Example:
        >>> scores = torch.tensor([[4.0, 1.0, 2.0, 3.0, 5.0, 6.0]])
        >>> kept = torch.ones(1, 6, dtype=torch.bool)
        >>> LargestOfEach(2, 4).groups(scores, kept).candidates.tolist()
        [False, True, True, False, True, False]
        >>> LargestOfEach(2, 4).fewest(kept)
        3
    """

    n: int
    m: int
    rows: bool = False

    @property
    def height(self) -> int:  # type: ignore[override]  # read-only here
        """As many rows as a group has weights, or one."""
        return self.m if self.rows else 1

    @property
    def width(self) -> int:  # type: ignore[override]
        """As many columns as a group has weights, or one."""
        return 1 if self.rows else self.m

    @property
    def most_removed(self) -> int:
        """One, because weights are removed singly."""
        return 1

    def groups(self, scores: torch.Tensor, kept: torch.Tensor) -> Groups:
        """Return the scores; candidates are the smallest of each group."""
        # Adding 0 makes -0.0 equal to +0.0 on any device.
        by_group, in_group = self._divide(scores + 0.0), self._divide(kept)
        order = by_group.argsort(dim=-1, stable=True)
        in_order = in_group.gather(-1, order)
        removable = in_group.sum(-1, keepdim=True) - self._kept_of_each(scores.shape, order)
        smallest = in_order & (in_order.cumsum(-1) <= removable)
        candidates = torch.zeros_like(in_group).scatter_(-1, order, smallest)
        # A score that is NaN is one of the largest here, and must not stay unnoticed.
        found = self._join(candidates, *scores.shape) | (kept & scores.isnan())
        return Groups(scores.reshape(-1), found.reshape(-1))

    def spread(self, chosen: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return the chosen weights."""
        return chosen.view(rows, columns)

    def fewest(self, kept: torch.Tensor) -> int:
        """Return the sum over all groups of how many weights each keeps."""
        in_group = self._divide(kept)
        least = self._kept_of_each(kept.shape, in_group)
        return int(torch.minimum(in_group.sum(-1, keepdim=True), least).sum())

    def _kept_of_each(self, shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
        """Return how many weights of each group are never removed, of shape (groups, 1)."""
        length = shape[0] if self.rows else shape[1]
        whole, rest = divmod(length, self.m)
        counts = [self.n] * whole + [-(-self.n * rest // self.m)] * bool(rest)
        return torch.tensor(counts, device=like.device, dtype=torch.int64)[:, None]

    def _divide(self, values: torch.Tensor) -> torch.Tensor:
        """Return a matrix as groups, of shape (rows or columns, groups, m), padded with zeros."""
        lines = values.T if self.rows else values
        groups = -(-lines.shape[1] // self.m)
        lines = pad(lines, (0, groups * self.m - lines.shape[1]))
        return lines.reshape(lines.shape[0], groups, self.m)

    def _join(self, by_group: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return the matrix that :meth:`_divide` divided."""
        lines, length = (columns, rows) if self.rows else (rows, columns)
        matrix = by_group.reshape(lines, by_group.shape[1] * self.m)[:, :length]
        return matrix.T if self.rows else matrix
