"""Turning what a run left behind, or any safetensors file, into a sparse file."""

from __future__ import annotations

from pathlib import Path

from prunus.export.exported import Exported, bound_of, target
from prunus.export.sparse_file import SparseFile, save_sparse

__all__ = ["to_sparse"]


def to_sparse(source: Path, out: Path | None = None) -> Exported:
    """Write a sparse file of the tensors of another file.

    Args:
        source: A safetensors file, sparse or not.
        out: The file to write; default: beside the source, as ``NAME.sparse.safetensors``.

    Raises:
        PrunusError: The source cannot be read, or the file not be written.

    Example:
        >>> import tempfile
        >>> import torch
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
