"""Export of a safetensors file, sparse or not, to a sparse file."""

from __future__ import annotations

from pathlib import Path

from prunus.errors import PrunusError
from prunus.export.paths import as_path, output_path
from prunus.export.report import ExportReport, stored_size_bound
from prunus.export.sparse_format import TIED_KEY
from prunus.export.sparse_reader import SparseFile
from prunus.export.sparse_writer import save_sparse

__all__ = ["to_sparse"]


def to_sparse(
    source: str | Path, out: str | Path | None = None, *, dtype: str | None = None
) -> ExportReport:
    """Write the tensors of a file to a sparse file.

    Args:
        source: A safetensors file, sparse or not.
        out: The file to write. Default: ``NAME.sparse.safetensors`` beside the source, in int8
            ``NAME.sparse.int8.safetensors``.
        dtype: "int8" to round matrices to 8-bit integers as :func:`prunus.save_sparse` does, or
            None (default) for a lossless file.

    Returns:
        The files and their sizes.

    Raises:
        ArgumentTypeError: An argument is not a path.
        ArgumentError: The dtype is not known, or a matrix to round has NaN or infinity.
        SparseFileError: The source is damaged.
        PrunusError: The source does not exist or holds compressed rows of tied tensors, or the file
            cannot be written.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"weight": torch.eye(100)}, path)
        >>> report = to_sparse(path)
        >>> report.path.name, report.source_bytes > 40 * report.bytes
        ('model.sparse.safetensors', True)
    """
    source = as_path(source, "source")
    form = "sparse" if dtype is None else f"sparse.{dtype}"
    out = output_path(source, out if out is None else as_path(out, "out"), form)
    with SparseFile(source) as file:
        if TIED_KEY in file.metadata():  # which only :func:`~prunus.export.to_csr` writes there
            raise PrunusError(
                f"{source} holds compressed rows and tied tensors: export the file that it was "
                "exported from"
            )
        names = file.keys()
        state = {name: file.get_tensor(name) for name in names}
        state |= {alias: state[name] for alias, name in file.tied.items()}
        save_sparse(state, out, dtype=dtype, metadata=file.metadata())
    bound = 0.0
    with SparseFile(out) as file:
        names = file.keys()
        tensors = [file.info(name) for name in names]
        for info in tensors:
            bound += stored_size_bound(info, file.get_elements(info.name))
    return ExportReport(source, out, source.stat().st_size, out.stat().st_size, bound, tensors)
