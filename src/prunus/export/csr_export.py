"""Export of a safetensors file, sparse or not, to compressed sparse rows."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from prunus._utils.files import write_atomically
from prunus.export.paths import as_path, output_path
from prunus.export.report import ExportReport, tensor_size_bound
from prunus.export.sparse_format import (
    CSR_KEY,
    DENSE,
    TIED_KEY,
    TensorInfo,
    encode_tensors,
    size_bound,
)
from prunus.export.sparse_reader import SparseFile

__all__ = ["to_csr"]

_CSR = "csr"
"""The name of the encoding, which is also part of the default name of a file."""


def to_csr(source: str | Path, out: str | Path | None = None) -> ExportReport:
    """Write the matrices of a file as compressed sparse rows, for other libraries to read.

    A tensor is read as a matrix whose rows are its first dimension. One that is smaller in this
    form is stored as ``NAME.values``, ``NAME.col_indices`` and ``NAME.crow_indices``, the last two
    as int32, and its shape in the metadata. All other tensors are stored with all elements under
    their own names, also those of which a part would have the name of another tensor. Of tied
    tensors only the first name is stored.

    Args:
        source: A safetensors file, sparse or not.
        out: The file to write. Default: ``NAME.csr.safetensors`` beside the source.

    Returns:
        The files and their sizes.

    Raises:
        ArgumentTypeError: An argument is not a path.
        SparseFileError: The source is damaged.
        PrunusError: The source does not exist, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file, save_file
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"weight": 2 * torch.eye(100)}, path)
        >>> state = load_file(to_csr(path).path)
        >>> state["weight.values"].sum(), state["weight.col_indices"][:3].tolist()
        (tensor(200.), [0, 1, 2])
    """
    source = as_path(source, "source")
    out = output_path(source, out if out is None else as_path(out, "out"), _CSR)
    state: dict[str, torch.Tensor] = {}
    shapes: dict[str, list[int]] = {}
    tensors: list[TensorInfo] = []
    bound = 0.0
    with SparseFile(source) as file:
        metadata = file.metadata()
        names = file.keys()
        for name in names:
            info = file.info(name)
            parts = _row_parts(file, info)
            size = sum(part.nbytes for part in parts.values())
            if parts and size < info.dense_bytes and parts.keys().isdisjoint(names):
                state |= parts
                shapes[name] = list(info.shape)
                encoding, count = _CSR, len(parts[f"{name}.values"])
                bound += size_bound(info.numel, count, 8 * info.dtype.itemsize)
            else:
                state[name] = file.get_tensor(name)
                encoding, count, size = DENSE, info.numel, info.dense_bytes
                bound += tensor_size_bound(state[name])
            tensors.append(
                TensorInfo(name, info.shape, info.dtype, info.dtype, encoding, count, size)
            )
        if file.tied:
            metadata[TIED_KEY] = dict(file.tied)
    metadata[CSR_KEY] = shapes
    write_atomically(out, encode_tensors(state, json.dumps(metadata)))
    return ExportReport(source, out, source.stat().st_size, out.stat().st_size, bound, tensors)


def _row_parts(file: SparseFile, info: TensorInfo) -> dict[str, torch.Tensor]:
    """Return the arrays of a tensor's compressed rows; none if int32 or a matrix does not fit."""
    if len(info.shape) < 2 or info.numel >= 2**31:
        return {}
    rows = file.get_csr(info.name)
    return {
        f"{info.name}.values": rows.values().contiguous(),
        f"{info.name}.col_indices": rows.col_indices().to(torch.int32),
        f"{info.name}.crow_indices": rows.crow_indices().to(torch.int32),
    }
