"""Turning what a run left behind, or any safetensors file, into compressed sparse rows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from prunus._utils.files import write_atomically
from prunus.export.exported import Exported, bound_of, target
from prunus.export.sparse_file import SparseFile, StoredTensor, size_bound

__all__ = ["to_csr"]


def to_csr(source: Path, out: Path | None = None) -> Exported:
    """Write the matrices of a file as compressed sparse rows, for other libraries to read.

    A tensor is a matrix of as many rows as its first dimension has elements. Those that take fewer
    bytes in this form are stored as ``NAME.values``, ``NAME.col_indices`` and
    ``NAME.crow_indices``, the last two as int32, and their shapes in the metadata. Other tensors
    lie whole under their names, also where one of those names is another tensor's; and of tied ones
    only the first.

    Args:
        source: A safetensors file, sparse or not.
        out: The file to write; default: beside the source, as ``NAME.csr.safetensors``.

    Raises:
        PrunusError: The source cannot be read, or the file not be written.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file, save_file
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"weight": 2 * torch.eye(100)}, path)
        >>> held = load_file(to_csr(path).path)
        >>> held["weight.values"].sum(), held["weight.col_indices"][:3].tolist()
        (tensor(200.), [0, 1, 2])
    """
    out = target(source, out, "csr")
    held: dict[str, torch.Tensor] = {}
    shapes: dict[str, list[int]] = {}
    tensors: list[StoredTensor] = []
    bound = 0.0
    with SparseFile(source) as file:
        about = file.about
        for name in file.tensors:
            stored = file[name]
            rows = file.csr(name) if len(stored.shape) > 1 and stored.numel < 2**31 else None
            own = {}
            if rows is not None:
                own = {
                    f"{name}.values": rows.values().contiguous(),
                    f"{name}.col_indices": rows.col_indices().to(torch.int32),
                    f"{name}.crow_indices": rows.crow_indices().to(torch.int32),
                }
            taken = sum(part.nbytes for part in own.values())
            if own and taken < stored.dense_bytes and not own.keys() & set(file.tensors):
                held |= own
                shapes[name] = list(stored.shape)
                count, how = len(own[f"{name}.values"]), "csr"
                bound += size_bound(stored.numel, count, 8 * stored.dtype.itemsize)
            else:
                held[name], taken = file.read(name), stored.dense_bytes
                count, how = stored.numel, "dense"
                bound += bound_of(held[name])
            tensors.append(StoredTensor(name, stored.shape, stored.dtype, how, count, taken))
        if file.tied:
            about = {**about, "tied": file.tied}
    write_atomically(out, save(held, {"prunus": json.dumps({**about, "csr": shapes})}))
    return Exported(source, out, source.stat().st_size, out.stat().st_size, bound, tensors)
