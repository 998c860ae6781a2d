"""Sparse matrices row by row, as the kernels read them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from prunus.runtime.kernels.records import Record, WeightRecord
from prunus.runtime.precision import FLOAT32, Int8, Precision

__all__ = ["SparseRows", "as_index", "from_index"]

_ROW_WORK = 4
"""Work of beginning and writing a row, in elements: a heuristic that balances rows among threads.

Too low, the thread with many short rows finishes last; too high, the thread with few long ones.
"""

Places = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class SparseRows(nn.Module):
    """The non-zero elements of a matrix, row by row, with their columns.

    In bfloat16 and int8, a word of 32 bits holds two or four elements of consecutive columns, of
    which at least one is not zero; the first column is a multiple of their number.

    Args:
        weight: A matrix of shape (rows, columns), float32.
        bias: Of shape (rows,), or None for zeros.
        precision: The type of the elements. Default: float32.

    Attributes:
        values: The elements, row by row; in bfloat16 and int8 the words, of shape (words, elements
            of a word). They and the bias are parameters without gradients, so that a network has
            parameters also where all its layers are sparse.
        columns: The column of each element in 16 bits where these are enough; of a word, its first
            column divided by the elements of a word.
        pointers: The number of the first element or word of each row, and at the end that of all.
        bias: The bias of each row, in float32.
        scales: In int8, the factor of each row's integers.
        input_scale: In int8, the factor of the activations' integers.
        zero_point: In int8, the integer that stands for an activation of 0.
        width: Number of columns.
        dtype: The type of the elements.
        group: Elements of a word; 1 in float32.

    Example:
        >>> rows = SparseRows(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]]), None)
        >>> rows.values.tolist(), rows.columns.tolist(), rows.pointers.tolist()
        ([2.0, 3.0, 4.0], [1, 0, 1], [0, 1, 1, 3])
        >>> from prunus.runtime.precision import BFloat16
        >>> rows = SparseRows(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]), None, BFloat16())
        >>> rows.values.tolist(), rows.columns.tolist(), rows.pointers.tolist()
        ([[0.0, 2.0], [1.0, 0.0]], [0, 1], [0, 1, 2])
    """

    values: nn.Parameter
    columns: torch.Tensor
    pointers: torch.Tensor
    bias: nn.Parameter
    scales: torch.Tensor
    input_scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        precision: Precision = FLOAT32,
    ) -> None:
        super().__init__()
        count, self.width = weight.shape
        self.dtype, self.group = precision.dtype, precision.group
        stored, scales = precision.store_weight(weight.detach())
        if self.group == 1:
            elements = stored.numpy()
            row, column = np.nonzero(elements)
        else:
            padding = -self.width % self.group
            padded = nn.functional.pad(stored, (0, padding))
            words = padded.view(count, math.ceil(self.width / self.group), self.group)
            row, column = (each.numpy() for each in words.ne(0).any(dim=2).nonzero().T)
        pointers = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=count), out=pointers[1:])
        values = torch.from_numpy(elements[row, column]) if self.group == 1 else words[row, column]
        self.values = nn.Parameter(values, requires_grad=False)
        self.register_buffer("columns", as_index(column, math.ceil(self.width / self.group)))
        self.register_buffer("pointers", torch.from_numpy(pointers))
        bias = torch.zeros(count, dtype=weight.dtype) if bias is None else bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        if scales is not None:
            assert isinstance(precision, Int8)
            self.register_buffer("scales", scales)
            self.register_buffer("input_scale", torch.tensor(precision.scale, dtype=torch.float32))
            self.register_buffer("zero_point", torch.tensor(precision.zero_point))

    def dense(self) -> torch.Tensor:
        """Return the matrix with its zeros, in float32.

        Example:
            >>> SparseRows(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), None).dense().tolist()
            [[0.0, 2.0], [3.0, 0.0]]
        """
        words = math.ceil(self.width / self.group)
        values = self.values.detach().cpu()
        matrix = torch.zeros(len(self.bias), words, *values.shape[1:], dtype=values.dtype)
        row = np.repeat(np.arange(len(self.bias)), np.diff(self.pointers.cpu().numpy()))
        places = torch.from_numpy(row), torch.from_numpy(from_index(self.columns.cpu()))
        matrix[places] = values
        if self.group > 1:
            matrix = matrix.flatten(1)[:, : self.width].float()
        if self.is_scaled:
            matrix *= self.scales.cpu()[:, None]
        return matrix.to(self.values.device)

    @property
    def is_scaled(self) -> bool:
        """Whether the elements are integers, and each row has a factor."""
        return "scales" in self._buffers

    @property
    def input_rounding(self) -> torch.Tensor:
        """The factor and the zero point by which activations are rounded; zeros if not to int8."""
        if not self.is_scaled:
            return torch.zeros(2)
        precision = Int8(scale=float(self.input_scale), zero_point=int(self.zero_point))
        return torch.stack([precision.factor, self.zero_point.float()])

    @property
    def dense_dtype(self) -> torch.dtype:
        """The type of the dense matrix."""
        return self.values.dtype if self.group == 1 else torch.float32

    @property
    def nonzeros(self) -> int:
        """Number of elements that are not zero."""
        return len(self.values) if self.group == 1 else int(self.values.count_nonzero())

    @property
    def index_bits(self) -> int:
        """Bits of a column."""
        return 8 * self.columns.element_size()

    @property
    def element_bytes(self) -> int:
        """Bytes of all elements and their columns, or of all words and theirs."""
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
        owners = [self.values, index, self.pointers, self.bias, bounds]
        if self.is_scaled:
            owners += self._integer_sums()
        addresses = [each.data_ptr() for each in owners]
        values_at, index_at, pointers_at, bias_at, bounds_at, *sums_at = addresses
        fields = WeightRecord(
            values=values_at,
            indices=index_at,
            pointers=pointers_at,
            bias=bias_at,
            bounds=bounds_at,
            threads=threads,
            relu=int(relu),
            **dict(zip(("starts", "scales"), sums_at, strict=False)),
        )
        return Record(fields, *owners)

    def _integer_sums(self) -> list[torch.Tensor]:
        """Return the number that the sum of each row begins with, and the factor of the sum.

        Activations are integers minus the zero point, which is subtracted from a sum at once.
        """
        row = np.repeat(np.arange(len(self.bias)), np.diff(self.pointers.numpy()))
        sums = torch.zeros(len(self.bias), dtype=torch.int64)
        sums.index_add_(0, torch.from_numpy(row), self.values.detach().long().sum(dim=1))
        return [-self.zero_point * sums, self.scales * self.input_scale]

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
