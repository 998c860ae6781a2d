"""A sparse matrix row by row, as the kernels read it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

__all__ = ["SparseRows"]

_CHUNK_BYTES = 1 << 17
"""What is read of the matrix before the next tile of activations has its turn: a part of the
second-level cache, so that the matrix comes from memory once and not once per tile."""


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

    @property
    def chunk(self) -> int:
        """Rows to work on before the next tile has its turn."""
        count = len(self.bias)
        each = 8 * len(self.values) / max(1, count)
        return max(1, min(count, int(_CHUNK_BYTES / max(1.0, each))))

    def bounds(self, parts: int) -> torch.Tensor:
        """Divide the rows into so many runs of about as many elements, each row counted as a few.

        Example:
            >>> rows = SparseRows(torch.tensor([[1.0] * 8, [0.0] * 8, [1.0] * 8, [1.0] * 8]), None)
            >>> rows.bounds(2).tolist()
            [0, 2, 4]
        """
        work = self.pointers + 4 * torch.arange(len(self.pointers))
        wanted = torch.arange(1, parts) * work[-1] / parts
        inner = torch.searchsorted(work.double(), wanted.double())
        ends = torch.tensor([0, len(self.bias)])
        return torch.cat([ends[:1], inner, ends[1:]])


def as_index(places: np.ndarray[tuple[int, ...], np.dtype[np.int64]], most: int) -> torch.Tensor:
    """Return places below ``most`` in as few bits as the kernels know: 16 or 32."""
    return torch.from_numpy(places.astype(np.uint16 if most <= 1 << 16 else np.int32))
