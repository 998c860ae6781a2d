"""A sparse matrix row by row, as the kernels read it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

__all__ = ["SparseRows", "as_index", "from_index"]

_ROW = 4
"""As many elements take as long as what is done once a row: beginning sums, and writing them."""


class SparseRows(nn.Module):
    """The non-zero elements of a matrix, row after row, with where they lie.

    Args:
        weight: A matrix of shape (rows, columns), float32.
        bias: Of shape (rows,), or None for zeros.

    Attributes:
        values: The non-zero elements, row after row.
        columns: The column of each, in 16 bits where that is enough.
        pointers: Where in ``values`` each row starts, and where the last ends.
        bias: Of each row.

    Example:
        >>> rows = SparseRows(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]]), None)
        >>> rows.values.tolist(), rows.columns.tolist(), rows.pointers.tolist()
        ([2.0, 3.0, 4.0], [1, 0, 1], [0, 1, 1, 3])
    """

    values: torch.Tensor
    columns: torch.Tensor
    pointers: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        dense = weight.detach().numpy()
        count, width = dense.shape
        row, column = np.nonzero(dense)
        pointers = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=count), out=pointers[1:])
        self.register_buffer("values", torch.from_numpy(dense[row, column]))
        self.register_buffer("columns", as_index(column, width))
        self.register_buffer("pointers", torch.from_numpy(pointers))
        own = torch.zeros(count) if bias is None else bias.detach().clone()
        self.register_buffer("bias", own)
        self._bounds: dict[int, torch.Tensor] = {}

    def chunk(self, size: int) -> int:
        """Return how many rows take about so many bytes, elements and columns together."""
        count = len(self.bias)
        each = (4 + self.columns.element_size()) * len(self.values) / max(1, count)
        return max(1, min(count, int(size / max(1.0, each))))

    def whole(self, index: torch.Tensor | None = None) -> tuple[int, ...]:
        """Return the kernels' first arguments, addresses all but the last two, for one thread.

        Args:
            index: What to read instead of ``columns``.
        """
        return (*self._addresses(index), 0, len(self.bias))

    def shared(self, threads: int, index: torch.Tensor | None = None) -> tuple[int, ...]:
        """Return the same for several threads, where the bounds of their rows come last."""
        if threads not in self._bounds:
            self._bounds[threads] = self.bounds(threads)
        return (*self._addresses(index), self._bounds[threads].data_ptr())

    def _addresses(self, index: torch.Tensor | None) -> tuple[int, ...]:
        index = self.columns if index is None else index
        return tuple(t.data_ptr() for t in (self.values, index, self.pointers, self.bias))

    def work(self) -> int:
        """Return how many elements there are, each row counted as a few more."""
        return len(self.values) + _ROW * len(self.bias)

    def bounds(self, parts: int) -> torch.Tensor:
        """Divide the rows into so many runs that are about as much work.

        Example:
            >>> rows = SparseRows(torch.tensor([[1.0] * 8, [0.0] * 8, [1.0] * 8, [1.0] * 8]), None)
            >>> rows.bounds(2).tolist()
            [0, 2, 4]
        """
        work = self.pointers + _ROW * torch.arange(len(self.pointers))
        wanted = torch.arange(1, parts) * work[-1] / parts
        inner = torch.searchsorted(work.double(), wanted.double())
        inner -= (wanted - work[inner - 1] < work[inner] - wanted).long()
        ends = torch.tensor([0, len(self.bias)])
        return torch.cat([ends[:1], inner, ends[1:]])


def as_index(places: np.ndarray[tuple[int, ...], np.dtype[np.int64]], most: int) -> torch.Tensor:
    """Return places below ``most`` in as few bits as the kernels know: 16 or 32, without a sign.

    Their type has a sign nevertheless, for torch cannot pickle those that have none.
    """
    if most <= 1 << 16:
        return torch.from_numpy(places.astype(np.uint16).view(np.int16))
    return torch.from_numpy(places.astype(np.int32))


def from_index(index: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the places that :func:`as_index` has written.

    Example:
        >>> from_index(as_index(np.array([1, 65_535]), 1 << 16)).tolist()
        [1, 65535]
    """
    numbers = index.numpy()
    return (numbers.view(np.uint16) if index.dtype == torch.int16 else numbers).astype(np.int64)
