"""The patterns: N:M, blocks, rows, columns, channels and heads."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from prunus._utils.checks import raise_problems
from prunus._utils.fields import choice, number
from prunus.patterns.base import Along, Pattern, PrunableMatrix
from prunus.patterns.groupings import Blocks, Grouping, LargestOfEach

__all__ = ["NM", "Block", "Channels", "Columns", "Heads", "Rows"]


@dataclass(frozen=True)
class NM(Pattern):
    """N:M sparsity: of each m consecutive weights at most n are kept in the end.

    The n largest scores of a group are never removed; of the others, the smallest of all groups are
    removed first. So the density of the tensor falls from 1 to n/m, where the pattern is complete
    and every group keeps exactly n weights, or fewer if it started with fewer. A smaller group at
    the end of a row, of s weights, keeps n · s / m of them, rounded up.

    The final number of kept weights of such tensors is fixed, as by
    :class:`~prunus.TargetAllocation`: with a schedule that knows its final number they approach it
    in step with the whole; with other schedules, and by :meth:`Pruner.prune`, they come first. The
    other tensors share what is left by the pruner's allocation.

    Args:
        n: How many weights of each group are kept.
        m: The number of weights in a group, above ``n``.
        along: "input" (default) if the weights of a group have the same output and consecutive
            inputs (of a convolution: positions in inputs · kernel), as hardware for 2:4 needs it;
            "output" if they have the same input and consecutive outputs.

    Raises:
        ArgumentError: An argument is out of range.

    Source: Mishra et al., "Accelerating sparse deep neural networks", arXiv 2104.08378.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(8, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2, 3, 4, 8, 7, 6, 5]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), pattern=NM(2, 4))
        >>> pruner.prune(sparsity=0.5)
        4
        >>> layer.weight.tolist()
        [[0.0, 0.0, 3.0, 4.0, 8.0, 7.0, 0.0, 0.0]]
    """

    n: int = number(whole=True, least=1)
    m: int = number(whole=True, least=2)
    along: Along = choice("input", ("input", "output"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.m:
            fix = "NM(2, 4) keeps 2 of each 4 weights"
            raise_problems(f"n must be below m={self.m}, but is {self.n}: {fix}")

    @property
    def density(self) -> Fraction:
        """The fraction of kept weights once the pattern is complete, without smaller groups."""
        return Fraction(self.n, self.m)

    def problem(self, matrix: PrunableMatrix) -> str | None:
        """Return that the dimension is shorter than a group, if it is."""
        length = matrix.columns if self.along == "input" else matrix.rows
        if length >= self.m:
            return None
        return f"needs at least {self.m} weights along the {self.along} dimension"

    def grouping(self, matrix: PrunableMatrix) -> Grouping:
        """Return the groups of m."""
        return LargestOfEach(self.n, self.m, rows=self.along == "output")


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of a matrix that are removed as a whole.

    Blocks at the end of the last rows and columns are smaller if the sizes do not divide.

    Args:
        rows: The number of outputs that a block extends over.
        columns: The number of its inputs (of a convolution: positions in inputs · kernel).

    Raises:
        ArgumentError: An argument is out of range.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 4.0, 2.0, 2.0]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), pattern=Block(1, 2))
        >>> pruner.prune(sparsity=0.5)
        2
        >>> layer.weight.tolist()
        [[1.0, 4.0, 0.0, 0.0]]
    """

    rows: int = number(whole=True, least=1)
    columns: int = number(whole=True, least=1)

    def problem(self, matrix: PrunableMatrix) -> str | None:
        """Return that the matrix is smaller than a block, if it is."""
        if self.rows <= matrix.rows and self.columns <= matrix.columns:
            return None
        return f"needs a matrix of at least {self.rows}×{self.columns}"

    def grouping(self, matrix: PrunableMatrix) -> Grouping:
        """Return the blocks."""
        return Blocks(self.rows, self.columns)


@dataclass(frozen=True)
class Rows(Pattern):
    """Whole rows: all weights of an output, or of an entry of an embedding.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 4.0]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), pattern=Rows())
        >>> pruner.prune(sparsity=0.5)
        2
        >>> layer.weight.tolist()
        [[0.0, 0.0], [0.0, 4.0]]
    """

    def problem(self, matrix: PrunableMatrix) -> str | None:
        """Return None: any matrix has rows."""
        return None

    def grouping(self, matrix: PrunableMatrix) -> Grouping:
        """Return the rows."""
        return Blocks(1, matrix.columns)


@dataclass(frozen=True)
class Columns(Pattern):
    """Whole columns: all weights of an input, or of a position in inputs · kernel.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 4.0]]))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> pruner = Pruner(layer, optimizer, score=MagnitudeScore(), pattern=Columns())
        >>> pruner.prune(sparsity=0.5)
        2
        >>> layer.weight.tolist()
        [[0.0, 2.0], [0.0, 4.0]]
    """

    def problem(self, matrix: PrunableMatrix) -> str | None:
        """Return None: any matrix has columns."""
        return None

    def grouping(self, matrix: PrunableMatrix) -> Grouping:
        """Return the columns."""
        return Blocks(matrix.rows, 1)


@dataclass(frozen=True)
class Channels(Rows):
    """Whole output channels of convolutions, and whole neurons of linear layers.

    A channel whose weights are all zero is constant; :func:`~prunus.compact` removes it together
    with all that reads it. Embeddings and recurrent layers have no such rows and are rejected.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner, select
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> selection = select(model, "0")
        >>> pruner = Pruner(
        ...     model, optimizer, score=MagnitudeScore(), pattern=Channels(), selection=selection
        ... )
        >>> pruner.prune(sparsity=0.75)
        162
        >>> int(model[0].weight.flatten(1).any(dim=1).sum())
        2
    """

    def problem(self, matrix: PrunableMatrix) -> str | None:
        """Return that rows are neither channels nor neurons, if they are not."""
        if matrix.has_units:
            return None
        return "needs rows that are neurons or channels; choose Rows() or Columns()"


@dataclass(frozen=True)
class Heads(Pattern):
    """Whole heads of an attention's projection.

    Without the weights of its values, or without those that read it in the output projection, a
    head has no effect, and :func:`~prunus.compact` removes the rest of it.

    Args:
        size: The number of outputs of a head in the projections of query, key and value, which is
            the number of its inputs in the output projection.
        along: "output" (default) for query, key and value; "input" for the output projection.

    Raises:
        ArgumentError: An argument is out of range. The pruner raises it for a projection whose
            dimension is not a multiple of ``size``.

    Example:
        >>> import torch
        >>> from prunus import MagnitudeScore, Pruner
        >>> model = torch.nn.ModuleDict({"value": torch.nn.Linear(8, 8)})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> heads = {"value": Heads(4)}
        >>> pruner = Pruner(model, optimizer, score=MagnitudeScore(), pattern=heads)
        >>> pruner.prune(sparsity=0.5)
        32
        >>> sorted(model["value"].weight.view(2, 32).any(dim=1).tolist())
        [False, True]
    """

    size: int = number(whole=True, least=1)
    along: Along = choice("output", ("input", "output"))

    def problem(self, matrix: PrunableMatrix) -> str | None:
        """Return that the heads do not divide the matrix, if they do not."""
        length = matrix.rows if self.along == "output" else matrix.columns
        if length % self.size == 0:
            return None
        return f"needs a multiple of {self.size} along the {self.along} dimension"

    def grouping(self, matrix: PrunableMatrix) -> Grouping:
        """Return the heads."""
        if self.along == "output":
            return Blocks(self.size, matrix.columns)
        return Blocks(matrix.rows, self.size)
