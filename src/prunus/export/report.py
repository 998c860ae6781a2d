"""The report of an export from one file to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunus._utils.sizes import compare_sizes
from prunus._utils.text_table import text_table
from prunus.export.sparse_format import TensorInfo, as_bits, size_bound

__all__ = ["ExportReport", "stored_size_bound", "tensor_size_bound"]


@dataclass(frozen=True)
class ExportReport:
    """The files of an export and their sizes.

    ``str()`` of it is a table with a row for each tensor.

    Attributes:
        source: The file that was read.
        path: The file that was written.
        source_bytes: The size of the source on disk.
        bytes: The size of the written file on disk.
        bound_bytes: A lower bound of the size of the tensors in any file, if their zeros are at
            random positions (:func:`~prunus.export.sparse_format.size_bound`); in int8 of the
            integers, with 4 bytes for the scale of each row.
        tensors: How each tensor is stored in the written file.
    """

    source: Path
    path: Path
    source_bytes: int
    bytes: int
    bound_bytes: float
    tensors: list[TensorInfo]

    def __str__(self) -> str:
        rows = [
            [tensor.name, tensor.stored_as, f"{tensor.dense_bytes:,}", f"{tensor.stored_bytes:,}"]
            for tensor in self.tensors
        ]
        return text_table(
            ["tensor", "stored as", "bytes, all elements", "bytes"],
            rows,
            footer=[
                "the file",
                compare_sizes(self.bytes, self.source_bytes),
                f"{self.source_bytes:,}",
                f"{self.bytes:,}",
            ],
            text_columns=2,
        )


def stored_size_bound(info: TensorInfo, elements: torch.Tensor) -> float:
    """Return a lower bound of a stored tensor's bytes, if its zeros are at random positions.

    Args:
        info: How it is stored: with scales, these count in full.
        elements: Its stored elements.
    """
    count = int(np.count_nonzero(as_bits(elements)))
    scales = 4 * info.shape[0] if info.has_scales else 0
    return size_bound(info.numel, count, 8 * info.stored_dtype.itemsize) + scales


def tensor_size_bound(tensor: torch.Tensor) -> float:
    """Return a lower bound of a tensor's bytes in any file, if its zeros are at random positions.

    Example:
        >>> tensor_size_bound(torch.ones(10))
        40.0
    """
    count = int(np.count_nonzero(as_bits(tensor)))
    return size_bound(tensor.numel(), count, 8 * tensor.element_size())
