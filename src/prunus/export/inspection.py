"""How sparse the tensors of a file are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from prunus.errors import PrunusError
from prunus.export.sparse_file import SparseFile

__all__ = ["TensorDensity", "model_file", "tensor_densities"]


@dataclass(frozen=True)
class TensorDensity:
    """One tensor of a file.

    Attributes:
        name: Its name there.
        shape: Its shape.
        dtype: Its type, such as "float32".
        numel: How many elements it has.
        nonzero: How many of them are not zero.
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


def model_file(path: Path) -> Path:
    """Return the safetensors file that ``path`` means: itself, or the model of a run's directory.

    Raises:
        PrunusError: There is none.
    """
    if path.is_dir():
        found = path / "model.safetensors"
        if not found.is_file():
            raise PrunusError(
                f"{path} holds no model.safetensors: the run may not be complete, or this may not "
                "be a run's directory"
            )
        return found
    if not path.is_file():
        raise PrunusError(f"there is no file or directory {path}")
    return path


def tensor_densities(path: Path) -> Iterator[TensorDensity]:
    """Read a safetensors file, sparse or not, tensor by tensor; only one is in memory at a time.

    Raises:
        PrunusError: It is damaged or not a safetensors file.
    """
    with SparseFile(path) as file:
        for name in sorted(file.tensors):
            stored = file[name]
            yield TensorDensity(
                name,
                stored.shape,
                str(stored.dtype).removeprefix("torch."),
                stored.numel,
                _nonzero(file.elements(name)),
            )


def _nonzero(tensor: torch.Tensor) -> int:
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which torch cannot count
        tensor = tensor.view(getattr(torch, str(tensor.dtype).removeprefix("torch.u")))
    elif tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)
    return int(torch.count_nonzero(tensor))
