"""Sparse matrices row by row, as the kernels read them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from prunus.runtime.kernels.records import Record, WeightRecord

__all__ = ["SparseRows", "as_index", "from_index"]

_ROW_WORK = 4
"""Work of beginning and writing a row, in elements: a heuristic that balances rows among threads.

Too low, the thread with many short rows finishes last; too high, the thread with few long ones.
"""

Places = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class SparseRows(nn.Module):
    """The non-zero elements of a matrix, row by row, with their columns.

    Args:
        weight: A matrix of shape (rows, columns), float32.
        bias: Of shape (rows,), or None for zeros.

    Attributes:
        values: The non-zero elements, row by row. They and the bias are parameters without
            gradients, so that a network has parameters also where all its layers are sparse.
        columns: The column of each element, in 16 bits where these are enough.
        pointers: The number of the first element of each row, and at the end that of all elements.
        bias: The bias of each row.
        width: Number of columns.

    Example:
        >>> rows = SparseRows(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]]), None)
        >>> rows.values.tolist(), rows.columns.tolist(), rows.pointers.tolist()
        ([2.0, 3.0, 4.0], [1, 0, 1], [0, 1, 1, 3])
    """

    values: nn.Parameter
    columns: torch.Tensor
    pointers: torch.Tensor
    bias: nn.Parameter

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        dense = weight.detach().numpy()
        count, self.width = dense.shape
        row, column = np.nonzero(dense)
        pointers = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=count), out=pointers[1:])
        self.values = nn.Parameter(torch.from_numpy(dense[row, column]), requires_grad=False)
        self.register_buffer("columns", as_index(column, self.width))
        self.register_buffer("pointers", torch.from_numpy(pointers))
        bias = torch.zeros(count, dtype=weight.dtype) if bias is None else bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)

    def dense(self) -> torch.Tensor:
        """Return the matrix with its zeros.

        Example:
            >>> SparseRows(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), None).dense().tolist()
            [[0.0, 2.0], [3.0, 0.0]]
        """
        matrix = torch.zeros(len(self.bias), self.width, dtype=self.values.dtype)
        row = np.repeat(np.arange(len(self.bias)), np.diff(self.pointers.cpu().numpy()))
        places = torch.from_numpy(row), torch.from_numpy(from_index(self.columns.cpu()))
        matrix[places] = self.values.detach().cpu()
        return matrix.to(self.values.device)

    @property
    def index_bits(self) -> int:
        """Bits of a column."""
        return 8 * self.columns.element_size()

    @property
    def element_bytes(self) -> int:
        """Bytes of all elements and their columns."""
        return (4 + self.columns.element_size()) * len(self.values)

    def rows_within(self, size: int) -> int:
        """Return how many rows take about ``size`` bytes, elements and columns together."""
        count = len(self.bias)
        row_bytes = self.element_bytes / max(1, count)
        return max(1, min(count, int(size / max(1.0, row_bytes))))

    def record(self, *, threads: int, relu: bool, index: torch.Tensor | None = None) -> Record:
        """Return the record by which kernels read the matrix.

        Args:
            threads: Number of threads among which the rows are divided.
            relu: Whether to apply a ReLU to the outputs.
            index: Replaces ``columns``. Default None: ``columns``.
        """
        index = self.columns if index is None else index
        bounds = self.bounds(threads)
        owners = (self.values, index, self.pointers, self.bias, bounds)
        values_at, index_at, pointers_at, bias_at, bounds_at = (t.data_ptr() for t in owners)
        fields = WeightRecord(
            values=values_at,
            indices=index_at,
            pointers=pointers_at,
            bias=bias_at,
            bounds=bounds_at,
            threads=threads,
            relu=int(relu),
        )
        return Record(fields, *owners)

    def work(self) -> int:
        """Return the work of a product in elements, where each row counts as some more."""
        return len(self.values) + _ROW_WORK * len(self.bias)

    def bounds(self, parts: int) -> torch.Tensor:
        """Return the bounds of consecutive parts of the rows that are about equal work.

        Example:
            >>> rows = SparseRows(torch.tensor([[1.0] * 8, [0.0] * 8, [1.0] * 8, [1.0] * 8]), None)
            >>> rows.bounds(2).tolist()
            [0, 2, 4]
        """
        work = self.pointers + _ROW_WORK * torch.arange(len(self.pointers))
        wanted = torch.arange(1, parts) * work[-1] / parts
        inner = torch.searchsorted(work.double(), wanted.double())
        inner -= (wanted - work[inner - 1] < work[inner] - wanted).long()
        ends = torch.tensor([0, len(self.bias)])
        return torch.cat([ends[:1], inner, ends[1:]])


def as_index(places: Places, limit: int) -> torch.Tensor:
    """Return places below ``limit`` as unsigned integers, of 16 bits if possible, else of 32.

    Their type is a signed one of as many bits, because torch cannot pickle unsigned ones.
    """
    if limit <= 1 << 16:
        return torch.from_numpy(places.astype(np.uint16).view(np.int16))
    return torch.from_numpy(places.astype(np.int32))


def from_index(index: torch.Tensor) -> Places:
    """Return the places that :func:`as_index` has converted.

    Example:
        >>> from_index(as_index(np.array([1, 65_535]), 1 << 16)).tolist()
        [1, 65535]
    """
    numbers = index.numpy()
    return (numbers.view(np.uint16) if index.dtype == torch.int16 else numbers).astype(np.int64)
