"""The writer of sparse files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunus._distributed.shards import is_sharded
from prunus._distributed.wrappers import unwrap
from prunus._utils.checks import choice_problem, raise_problems, type_problem
from prunus._utils.conversions import check_not_converted, is_converted
from prunus._utils.files import memory_key, write_atomically
from prunus._utils.row_scales import quantize_rows
from prunus.errors import ArgumentError, listing
from prunus.export.encodings import ENCODINGS
from prunus.export.paths import path_problem
from prunus.export.sparse_format import (
    DENSE,
    DTYPES,
    RESERVED_KEYS,
    RESTORED_TYPES,
    SCALES,
    SCALES_VERSION,
    TIED_KEY,
    VERSION,
    as_bits,
    encode_tensors,
    part_key,
)

__all__ = ["save_sparse"]

_SMALLEST = "smallest"
"""The choice of the smallest encoding for each tensor."""

_HEADER_BYTES = 120
"""About how many bytes of the header a tensor with an index takes; less is not worth encoding."""

_TYPE_NAMES = {DTYPES[name]: name for name in RESTORED_TYPES}
"""The names of the types that can be rounded to 8-bit integers."""

_SAVE_IN_INT8 = "prunus.save_sparse(..., dtype='int8') for 8-bit integers"

_MANY_NEGATIVE_ZEROS = 1000
"""The number of elements of -0.0 up to which no warning is worth while."""


def save_sparse(
    model: nn.Module | Mapping[str, torch.Tensor],
    path: str | Path,
    *,
    dtype: str | None = None,
    encoding: str = _SMALLEST,
    keep_negative_zeros: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the tensors of a model without their zeros to one safetensors file.

    The file is lossless: every bit of every element is restored. An element is left out if all its
    bits are 0, so that -0.0 and every NaN are stored. A tensor with several names (tied weights) is
    stored once.

    With ``dtype="int8"`` matrices are rounded to 8-bit integers, with a scale for each row (for
    each first index): the largest magnitude in the row / 127. :func:`load_sparse` returns them in
    their own type again, where an element differs by half a scale at most, beside the rounding of
    that type, and zeros stay zeros. Tensors with fewer than two dimensions, buffers of a module,
    and matrices that this would not make smaller, are stored as they are.

    Args:
        model: A module, whose ``state_dict`` is written and which may be wrapped by
            ``torch.compile`` or DistributedDataParallel; or a ``state_dict``.
        path: The file to write or replace.
        dtype: "int8" to round matrices to 8-bit integers, or None (default) for a lossless file.
        encoding: How the positions of the stored elements are encoded. "smallest" selects the
            smallest encoding for each tensor; "bitmap", "columns" or "gaps" is used for every
            tensor that it supports and makes smaller ("columns" can be read without decoding).
        keep_negative_zeros: Whether -0.0 is stored. If False it is written as 0.0, which is equal
            to it in all comparisons. Weights multiplied by a mask of 0 and 1 become -0.0 where they
            were negative.
        metadata: Facts to store in the file's metadata; JSON must be able to represent them.

    Warns:
        UserWarning: More than a tenth of the elements to store of a tensor, and more than a
            thousand, are -0.0.

    Raises:
        ArgumentError: The state contains something other than whole tensors, or a matrix to round
            with NaN or numbers that no scale can hold; the encoding or the dtype is not known; or
            the metadata cannot be written as JSON or use a reserved key.
        ArgumentTypeError: An argument has another type.
        PrunusError: The model is quantized, or the file cannot be written. An existing file is left
            unchanged.

    Example:
        >>> import tempfile
        >>> from prunus import load_sparse
        >>> model = nn.Linear(1000, 10)
        >>> _ = nn.init.sparse_(model.weight, sparsity=0.9)
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_sparse(model, path)
        >>> path.stat().st_size < 0.2 * 4 * 10_010
        True
        >>> loaded = load_sparse(path)
        >>> torch.equal(loaded["weight"], model.weight)
        True
    """
    _check_arguments(model, path, dtype, encoding, metadata)
    if isinstance(model, nn.Module):
        model = unwrap(model)
        state: Mapping[str, torch.Tensor] = model.state_dict()
        # A module of TorchScript has its tensors, unless torch.jit.freeze made constants of them.
        check_not_converted(
            model, allowed=["script"] if state else [], then=f"save it with {_SAVE_IN_INT8}"
        )
    else:
        state = model
    tensors, tied = _split_tied(state)
    rounded: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if dtype is not None:
        buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
        rounded = _round({name: x for name, x in tensors.items() if name not in buffers})
    stored: dict[str, torch.Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    negative: list[str] = []
    for name, tensor in tensors.items():
        integers, scales = rounded.get(name, (tensor, None))
        encoded = _encode(integers, encoding, keep_negative_zeros=keep_negative_zeros)
        if encoded.many_negative_zeros:
            negative.append(name)
        stored[name] = encoded.elements
        parts = {**encoded.index, **({} if scales is None else {SCALES: scales})}
        if parts:
            entry: dict[str, Any] = {"shape": list(tensor.shape)}
            if encoded.encoding != DENSE:
                entry["index"] = encoded.encoding
            if scales is not None:
                entry["type"] = _TYPE_NAMES[tensor.dtype]
            separator = _separator(name, parts, tensors)
            if separator != "/":
                entry["slash"] = separator
            entries[name] = entry
            stored |= {part_key(name, separator, part): x for part, x in parts.items()}
    if negative:
        warnings.warn(
            f"many zeros of {listing(negative)} are -0.0, as after a multiplication by a mask, and "
            "are stored like other elements: pass keep_negative_zeros=False to drop them",
            stacklevel=2,
        )
    version = SCALES_VERSION if rounded else VERSION  # older readers know nothing of scales
    content: dict[str, Any] = {**(metadata or {}), "sparse": version, "tensors": entries}
    if tied:
        content[TIED_KEY] = tied
    write_atomically(Path(path), encode_tensors(stored, _as_json(content)))


def _check_arguments(
    model: object, path: object, dtype: object, encoding: object, metadata: object
) -> None:
    raise_problems(
        type_problem(
            "model",
            model,
            (nn.Module, Mapping),
            "a torch.nn.Module or its state_dict",
            fix="the order is save_sparse(model, path)",
        ),
        path_problem("path", path),
        choice_problem("dtype", dtype, ("int8", None)),
        choice_problem("encoding", encoding, (_SMALLEST, *ENCODINGS)),
        type_problem("metadata", metadata, Mapping, "a mapping", optional=True),
    )
    reserved = [key for key in RESERVED_KEYS if isinstance(metadata, Mapping) and key in metadata]
    if reserved:
        raise ArgumentError(
            f"metadata must not use the keys {', '.join(RESERVED_KEYS)}, which the format reserves,"
            f" but has {listing(reserved)}"
        )


def _as_json(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"metadata must hold only values that JSON can represent: {error}"
        ) from error


def _split_tied(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return each tensor once by its first name, and that name by the other names of the tensor.

    Raises:
        ArgumentError: The state contains values that a sparse file cannot hold.
    """
    problems = [f"the name {name!r} is not a string" for name in state if not isinstance(name, str)]
    problems += [f"{name} is {why}" for name, value in state.items() if (why := _problem(value))]
    if problems:
        raise ArgumentError(f"a sparse file can hold only whole tensors, but {listing(problems)}")
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        memory = memory_key(tensor)
        first = name if memory is None else names.setdefault(memory, name)
        if first == name:
            tensors[name] = tensor.detach()
        else:
            tied[name] = first
    return tensors, tied


def _problem(value: object) -> str | None:
    """Return why a sparse file cannot hold a value, or None if it can."""
    if _is_quantized(value):
        return f"quantized: save the state before it is quantized, with {_SAVE_IN_INT8}"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if is_lazy(value):
        return "not initialized yet: run the model once first"
    if is_sharded(value):
        return (
            "sharded over several processes: gather the state first, with "
            "accelerator.get_state_dict(model), or with torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
        )
    if is_converted(value):
        return (
            f"a {type(value).__name__}, not a plain tensor: save the state before it is converted, "
            f"with {_SAVE_IN_INT8}"
        )
    if value.is_meta:
        return "without data, on the meta device"
    if value.layout != torch.strided:
        return f"of layout {value.layout}: make it dense by to_dense()"
    if value.dtype not in DTYPES.values():
        return f"of type {value.dtype}, which safetensors cannot hold"
    return None


def _is_quantized(value: object) -> bool:
    """Return whether a value is a quantized tensor of torch, or a layer's tuple with one."""
    values = value if isinstance(value, tuple) else (value,)
    return any(isinstance(x, torch.Tensor) and x.is_quantized for x in values)


def _round(
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the integers and scales of each matrix that is smaller in this form, by its name.

    Raises:
        ArgumentError: Matrices contain NaN, infinity, or numbers that no scale can hold.
    """
    rounded, problems = {}, []
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.dtype not in _TYPE_NAMES:
            continue
        saved = int(torch.count_nonzero(tensor)) * (tensor.dtype.itemsize - 1)
        if saved <= 4 * len(tensor) + _HEADER_BYTES:
            continue
        rounded[name] = quantize_rows(tensor.cpu())
        if not bool(rounded[name][1].isfinite().all()):
            problems.append(name)
    if problems:
        raise ArgumentError(
            "matrices to round to int8 must have finite elements, of at most 4e40, but "
            f"{listing(problems)} have others: fix them, or leave out dtype='int8'"
        )
    return rounded


@dataclass(frozen=True)
class _Encoded:
    """The stored form of one tensor.

    Attributes:
        elements: The elements to store: the whole tensor if the encoding is "dense".
        index: The arrays of the index by name.
        encoding: The name of the encoding.
        many_negative_zeros: Whether so many of the elements are -0.0 that the user is warned.
    """

    elements: torch.Tensor
    index: Mapping[str, torch.Tensor]
    encoding: str
    many_negative_zeros: bool


def _encode(tensor: torch.Tensor, encoding: str, *, keep_negative_zeros: bool) -> _Encoded:
    """Return the stored form of a tensor, in the smallest of the encodings that may be used."""
    # Always a copy: safetensors rejects tensors that share memory, and -0.0 may be replaced.
    tensor = tensor.cpu().clone(memory_format=torch.contiguous_format)
    bits = as_bits(tensor)
    positions = np.flatnonzero(bits)
    is_negative_zero = _find_negative_zeros(tensor, positions)
    many = False
    if not keep_negative_zeros:
        bits[positions[is_negative_zero]] = 0
        positions = positions[~is_negative_zero]
    else:
        threshold = max(_MANY_NEGATIVE_ZEROS, len(positions) // 10)
        many = bool(np.count_nonzero(is_negative_zero) > threshold)
    smallest = _Encoded(tensor, {}, DENSE, many)
    size = tensor.numel() * tensor.dtype.itemsize - _HEADER_BYTES
    if tensor.ndim == 0 or size <= 0:
        return smallest
    elements, shape = bits[positions], tuple(tensor.shape)
    for name, candidate in ENCODINGS.items():
        if encoding not in (_SMALLEST, name) or not candidate.supports(shape):
            continue
        if elements.nbytes + candidate.size(len(positions), shape) >= size:
            continue
        index = candidate.encode(positions, shape)
        candidate_size = elements.nbytes + sum(part.nbytes for part in index.values())
        if candidate_size < size:
            values = torch.from_numpy(elements).view(tensor.dtype)
            arrays = {part: torch.from_numpy(array) for part, array in index.items()}
            smallest, size = _Encoded(values, arrays, name, many), candidate_size
    return smallest


def _find_negative_zeros(
    tensor: torch.Tensor, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return for each of these positions of elements with a bit set whether the element is -0.0."""
    if not tensor.is_floating_point():
        return np.zeros(len(positions), np.bool_)
    # Shifted out, the sign bit of -0.0 leaves nothing.
    found: npt.NDArray[np.bool_] = as_bits(tensor)[positions] << 1 == 0
    return found


def _separator(name: str, parts: Iterable[str], names: Container[str]) -> str:
    """Return the fewest slashes with which no part of a tensor has the name of another tensor."""
    separator = "/"
    while any(part_key(name, separator, part) in names for part in parts):
        separator += "/"
    return separator
