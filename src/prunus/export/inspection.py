"""Densities of the tensors in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from prunus.export.sparse_reader import SparseFile

__all__ = ["TensorDensity", "by_numbers", "tensor_densities"]


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""The names of the buffers of torch's normalizations."""


@dataclass(frozen=True)
class TensorDensity:
    """The counts of one tensor in a file.

    Attributes:
        name: The tensor's name.
        shape: The tensor's shape.
        dtype: The name of the type of its stored elements, such as "float32".
        numel: The number of elements.
        nonzero: The number of elements that are not zero.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    numel: int
    nonzero: int

    @property
    def density(self) -> float:
        """Non-zero / all elements; 0 for an empty tensor."""
        return self.nonzero / self.numel if self.numel else 0.0

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, as its name and type tell; else it is a buffer.

        Running statistics and counts of normalizations are buffers, and so are positions and masks:
        truth values, and integers of more than 8 bits.
        """
        is_index = self.dtype in ("bool", "int16", "int32", "int64")
        return not is_index and self.name.rpartition(".")[2] not in _BUFFERS


def tensor_densities(path: str | Path) -> Iterator[TensorDensity]:
    """Count the elements of each tensor in a file, with one tensor in memory at a time.

    Args:
        path: A safetensors file, sparse or not.

    Yields:
        The counts of each tensor, sorted by name, numbers in names as numbers; a tied tensor once.

    Raises:
        SparseFileError: The file is damaged or not a safetensors file.
        PrunusError: There is no such file.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"weight": torch.eye(10)}, path)
        >>> [(counts.name, counts.density) for counts in tensor_densities(path)]
        [('weight', 0.1)]
    """
    with SparseFile(path) as file:
        for name in sorted(file.keys(), key=by_numbers):
            info = file.info(name)
            dtype = str(info.stored_dtype).removeprefix("torch.")
            nonzero = _count_nonzero(file.get_elements(name))
            yield TensorDensity(name, info.shape, dtype, info.numel, nonzero)


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layers.2 before layers.10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _count_nonzero(tensor: torch.Tensor) -> int:
    # torch counts neither unsigned integers of more than 8 bits nor floats of 8 bits.
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        tensor = tensor.view(getattr(torch, str(tensor.dtype).removeprefix("torch.u")))
    elif tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)
    return int(torch.count_nonzero(tensor))
