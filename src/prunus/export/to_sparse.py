"""Turning what a run left behind, or any safetensors file, into a sparse file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunus.errors import UserError
from prunus.export.sparse_file import SparseFile, StoredTensor, as_bits, save_sparse, size_bound

__all__ = ["Exported", "bound_of", "target", "to_sparse"]


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


def to_sparse(source: Path, out: Path | None = None) -> Exported:
    """Write a sparse file of the tensors of another file.

    Args:
        source: A safetensors file, sparse or not.
        out: The file to write; default: beside the source, as ``NAME.sparse.safetensors``.

    Raises:
        UserError: The source cannot be read, or the file not be written.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"weight": torch.eye(100)}, path)
        >>> exported = to_sparse(path)
        >>> exported.path.name, exported.source_bytes > 40 * exported.bytes
        ('model.sparse.safetensors', True)
    """
    out = target(source, out, "sparse")
    with SparseFile(source) as file:
        state = {name: file.read(name) for name in file.tensors}
        state |= {alias: state[name] for alias, name in file.tied.items()}
        save_sparse(state, out, about=file.about)
    bound = 0.0
    with SparseFile(out) as file:
        tensors = [file[name] for name in file.tensors]
        for stored in tensors:
            bound += bound_of(state[stored.name])
    return Exported(source, out, source.stat().st_size, out.stat().st_size, bound, tensors)


def target(source: Path, out: Path | None, form: str) -> Path:
    """Return the file to write: ``out``, or one beside the source with the form in its name.

    Raises:
        UserError: It is the source itself.
    """
    end = "" if form == "onnx" else ".safetensors"
    out = out or source.with_name(f"{source.name.removesuffix('.safetensors')}.{form}{end}")
    if out.exists() and out.samefile(source):
        raise UserError(f"{out} is the file to read: choose another --out")
    return out


def bound_of(tensor: torch.Tensor) -> float:
    """Return the bytes that a tensor takes at least in any file, if its zeros lie at random."""
    kept = int(np.count_nonzero(as_bits(tensor)))
    return size_bound(tensor.numel(), kept, 8 * tensor.element_size())
