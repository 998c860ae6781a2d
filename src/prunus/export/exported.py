"""What all forms of export have in common: where the file goes, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunus.errors import PrunusError
from prunus.export.sparse_file import StoredTensor, as_bits, size_bound

__all__ = ["Exported", "bound_of", "target"]


@dataclass(frozen=True)
class Exported:
    """What became of a file.

    Attributes:
        source: The file as it was.
        path: The file that was written.
        source_bytes: What the file as it was takes on disk.
        bytes: What the file that was written takes on disk.
        bound: What its tensors take at least if their zeros lie at random, as :func:`size_bound`.
        tensors: How each tensor lies in it.
    """

    source: Path
    path: Path
    source_bytes: int
    bytes: int
    bound: float
    tensors: list[StoredTensor]


def target(source: Path, out: Path | None, form: str) -> Path:
    """Return the file to write: ``out``, or one beside the source with the form in its name.

    Raises:
        PrunusError: It is the source itself.
    """
    end = "" if form == "onnx" else ".safetensors"
    out = out or source.with_name(f"{source.name.removesuffix('.safetensors')}.{form}{end}")
    if out.exists() and out.samefile(source):
        raise PrunusError(f"{out} is the file to read: choose another --out")
    return out


def bound_of(tensor: torch.Tensor) -> float:
    """Return the bytes that a tensor takes at least in any file, if its zeros lie at random."""
    kept = int(np.count_nonzero(as_bits(tensor)))
    return size_bound(tensor.numel(), kept, 8 * tensor.element_size())
