"""The layout of a tensor: its chunks, and the groups of weights in each of them.

Unstructured tensors are divided into chunks of single weights, in order of memory. Tensors with a
pattern are matrices of shape (outputs, inputs · kernel), divided into slabs of whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch

from prunus._distributed.shards import Shard, positions
from prunus._utils.chunks import chunks
from prunus.patterns.groupings import Grouping

__all__ = ["SINGLE_WEIGHTS", "Layout", "MatrixLayout", "Part", "SingleWeights"]


class Part(NamedTuple):
    """What may be removed from a chunk of a tensor.

    Attributes:
        scores: The scores of groups or single weights, as a vector.
        candidates: True where the group or the weight may be removed.
        sizes: How many weights each group has; None for single weights.
        positions: Returns the position of each score in the whole tensor.
        length: An upper bound on positions.
        weights: The weights, unless NaN among them is NaN among the scores.
    """

    scores: torch.Tensor
    candidates: torch.Tensor
    sizes: torch.Tensor | None
    positions: Callable[[], torch.Tensor]
    length: int
    weights: torch.Tensor | None


class Layout(Protocol):
    """The chunks and groups of one tensor, or of the shard of it in this process."""

    @property
    def most_removed(self) -> int:
        """The largest number of weights that are removed together."""
        ...

    def chunks(
        self, tensors: Sequence[torch.Tensor], size: int
    ) -> Iterable[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield chunks: the number of the first row, and views of tensors of the shard's shape.

        Args:
            tensors: The shard, and tensors of its shape.
            size: The most elements in a chunk, unless a single row of groups has more.
        """
        ...

    def part(
        self,
        scores: torch.Tensor,
        kept: torch.Tensor,
        chunk: torch.Tensor,
        storage: torch.Tensor,
        shard: Shard,
        row: int,
    ) -> Part:
        """Return what may be removed from a chunk.

        Args:
            scores: The scores of its weights, of the shape of the chunk.
            kept: True where a weight is kept and may be removed.
            chunk: The weights, a view of ``storage``.
            storage: The shard.
            shard: The position of the shard in the whole tensor.
            row: The number of the chunk's first row in the shard.
        """
        ...

    def spread(self, chosen: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return the weights of chosen groups of a chunk, of its shape.

        Args:
            chosen: True for the groups, in the order of :meth:`part`.
            kept: As for :meth:`part`.
        """
        ...

    def fewest(self, kept: torch.Tensor, size: int) -> int:
        """Return how many kept weights of the shard the pattern never removes.

        Args:
            kept: True where a weight is kept and may be removed.
            size: As for :meth:`chunks`.
        """
        ...


@dataclass(frozen=True)
class SingleWeights:
    """The layout without a pattern: each weight is removed by itself."""

    @property
    def most_removed(self) -> int:
        """One."""
        return 1

    def chunks(
        self, tensors: Sequence[torch.Tensor], size: int
    ) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield chunks in order of memory; their rows are not numbered."""
        return ((0, views) for views in chunks(*tensors, size=size))

    def part(
        self,
        scores: torch.Tensor,
        kept: torch.Tensor,
        chunk: torch.Tensor,
        storage: torch.Tensor,
        shard: Shard,
        row: int,
    ) -> Part:
        """Return all kept weights."""
        return Part(
            scores.reshape(-1),
            kept.reshape(-1),
            None,
            partial(positions, chunk, storage, shard),
            math.prod(shard.shape),
            chunk,
        )

    def spread(self, chosen: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return the chosen weights."""
        return chosen.view(kept.shape)

    def fewest(self, kept: torch.Tensor, size: int) -> int:
        """Return 0."""
        return 0


SINGLE_WEIGHTS = SingleWeights()
"""The layout without a pattern."""


@dataclass(frozen=True)
class MatrixLayout:
    """The layout of a matrix of shape (outputs, inputs · kernel) that a grouping divides.

    Attributes:
        grouping: The grouping.
        transposed: Whether the tensor is stored with its inputs first.
    """

    grouping: Grouping
    transposed: bool = False

    @property
    def most_removed(self) -> int:
        """That of the grouping."""
        return self.grouping.most_removed

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the shape of the matrix that a tensor of a shape is.

        Example:
            >>> from prunus.patterns.groupings import Blocks
            >>> layout = MatrixLayout(Blocks(1, 4), transposed=True)
            >>> layout.matrix_shape((16, 8, 3, 3))
            (8, 144)
        """
        first, second, *kernel = shape
        rows, columns = (second, first) if self.transposed else (first, second)
        return rows, columns * math.prod(kernel)

    def matrix_range(self, shard: Shard) -> tuple[range, range]:
        """Return the rows and the columns of the matrix that a shard has."""
        (rows, columns), kernel = self.matrix_shape(shard.size), math.prod(shard.shape[2:])
        row, column = shard.offsets[:2][:: -1 if self.transposed else 1]
        return range(row, row + rows), range(column * kernel, column * kernel + columns)

    def is_divided_by(self, shard: Shard) -> bool:
        """Return whether a shard has whole groups only."""
        if shard.size[2:] != shard.shape[2:]:
            return False
        steps = self.grouping.height, self.grouping.width
        return not any(
            own and (own.start % step or (own.stop % step and own.stop != length))
            for own, step, length in zip(
                self.matrix_range(shard), steps, self.matrix_shape(shard.shape), strict=True
            )
        )

    def chunks(
        self, tensors: Sequence[torch.Tensor], size: int
    ) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield slabs of whole groups, with their first row."""
        by_row = [tensor.transpose(0, 1) if self.transposed else tensor for tensor in tensors]
        rows, columns = self.matrix_shape(tensors[0].shape)
        height = self.grouping.height
        step = max(1, size // max(1, height * columns)) * height
        for row in range(0, max(1, rows), step):
            yield row, tuple(tensor[row : row + step] for tensor in by_row)

    def part(
        self,
        scores: torch.Tensor,
        kept: torch.Tensor,
        chunk: torch.Tensor,
        storage: torch.Tensor,
        shard: Shard,
        row: int,
    ) -> Part:
        """Return the groups of a slab."""
        rows, columns = _matrix_size(chunk)
        # The score of a weight that is NaN may be a number: a moving average of its past.
        nan = chunk.isnan().logical_and_(kept)
        scores = scores.masked_fill(nan, math.nan) if bool(nan.any()) else scores
        groups = self.grouping.groups(scores.reshape(rows, columns), kept.reshape(rows, columns))
        if groups.sizes is None:
            where = partial(positions, chunk, storage, shard)
            length = math.prod(shard.shape)
        else:
            where = partial(self._group_positions, chunk, shard, row)
            length = math.prod(self._group_counts(*self.matrix_shape(shard.shape)))
        return Part(groups.scores, groups.candidates, groups.sizes, where, length, None)

    def _group_counts(self, rows: int, columns: int) -> tuple[int, int]:
        return -(-rows // self.grouping.height), -(-columns // self.grouping.width)

    def _group_positions(self, chunk: torch.Tensor, shard: Shard, row: int) -> torch.Tensor:
        """Return the number of each group of a slab, row by row in the whole matrix."""
        _, beside = self._group_counts(*self.matrix_shape(shard.shape))
        rows, columns = self.matrix_range(shard)
        above, across = self._group_counts(*_matrix_size(chunk))
        first = (rows.start + row) // self.grouping.height
        down = torch.arange(first, first + above, device=chunk.device)
        right = torch.arange(across, device=chunk.device) + columns.start // self.grouping.width
        return (down[:, None] * beside + right).reshape(-1)

    def spread(self, chosen: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return the kept weights of the chosen groups."""
        rows, columns = _matrix_size(kept)
        return self.grouping.spread(chosen, rows, columns).reshape(kept.shape) & kept

    def fewest(self, kept: torch.Tensor, size: int) -> int:
        """Return the sum over all slabs."""
        return sum(
            self.grouping.fewest(slab.reshape(_matrix_size(slab)))
            for _, (slab,) in self.chunks([kept], size)
        )


def _matrix_size(slab: torch.Tensor) -> tuple[int, int]:
    return slab.shape[0], math.prod(slab.shape[1:])
