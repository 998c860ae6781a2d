"""The reader of sparse files, and of ordinary safetensors files.

Files are untrusted: every value is checked before use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from prunus._utils.checks import number_problem, raise_problems
from prunus._utils.row_scales import restore
from prunus.errors import ArgumentError, PrunusError, SparseFileError, listing, nearest
from prunus.export.encodings import ENCODINGS, InconsistencyError
from prunus.export.model_loading import load_state
from prunus.export.paths import path_problem
from prunus.export.sparse_format import (
    BIT_TYPES,
    DENSE,
    DTYPES,
    SCALES,
    Metadata,
    TensorEntry,
    TensorInfo,
    as_bits,
    can_allocate,
    read_metadata,
)

__all__ = ["MAX_BYTES", "SparseFile", "load_sparse"]

MAX_BYTES = 1 << 36
"""The default limit of the bytes of tensors read from a file: 64 GiB."""

_RESTORE = "Restore the file from a copy, or write it again with save_sparse"

_PICKLE = (
    "{} is a file of torch.save, a pickle, which prunus does not load because it may run code: "
    "load it yourself with torch.load(..., weights_only=True), and write its tensors with "
    "prunus.save_sparse or safetensors.torch.save_file"
)


def load_sparse(
    path: str | Path, model: nn.Module | None = None, *, max_bytes: int = MAX_BYTES
) -> dict[str, torch.Tensor]:
    """Read all tensors of a sparse file, or of an ordinary safetensors file.

    Args:
        path: The file.
        model: A module of the same architecture to load the tensors into, as ``load_state_dict``
            does. It is left unchanged if they do not fit or its types would round them.
        max_bytes: The largest total size of the tensors: a small file can hold very many zeros.

    Returns:
        The tensors by name; tied names have the same tensor. One that is stored as 8-bit integers
        with scales has its original type again.

    Raises:
        SparseFileError: The file is damaged or malicious, or its tensors exceed ``max_bytes``.
        ArgumentError: ``max_bytes`` is negative.
        ArgumentTypeError: An argument has another type.
        PrunusError: There is no such file, or the tensors do not fit the model.

    Example:
        >>> import tempfile
        >>> from prunus import save_sparse
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_sparse({"a": torch.eye(100)}, path)
        >>> load_sparse(path)["a"].sum()
        tensor(100.)
    """
    with SparseFile(path, max_bytes=max_bytes) as file:
        names = file.keys()
        total = sum(file.info(name).dense_bytes for name in names)
        if total > max_bytes:
            raise SparseFileError(_too_large(f"the tensors of {path}", total, max_bytes))
        tensors = {name: file.get_tensor(name) for name in names}
        state = tensors | {alias: tensors[name] for alias, name in file.tied.items()}
    if model is not None:
        load_state(model, state, path)
    return state


class SparseFile:
    """A sparse file, or an ordinary safetensors file, opened to read single tensors.

    :meth:`keys` and :meth:`get_tensor` work as in ``safetensors.safe_open``; :meth:`metadata`
    returns the facts that the writer stored. Use it as a context manager, which closes the file.

    Args:
        path: The file.
        max_bytes: The largest size of a tensor to read.

    Attributes:
        path: The file.
        tied: The first name of each tied tensor, by its other names.

    Raises:
        SparseFileError: The file is damaged or malicious.
        ArgumentError: ``max_bytes`` is negative.
        ArgumentTypeError: An argument has another type.
        PrunusError: There is no such file.

    Example:
        >>> import tempfile
        >>> from prunus import save_sparse
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_sparse({"a": torch.eye(100), "b": torch.ones(3)}, path, metadata={"epoch": 3})
        >>> with SparseFile(path) as file:
        ...     file.keys(), file.metadata()
        ...     file.info("a").encoding, file.info("a").stored_elements, file.info("b").encoding
        ...     file.get_tensor("b"), file.get_csr("a").values().sum()
        (['a', 'b'], {'epoch': 3})
        ('gaps', 100, 'dense')
        (tensor([1., 1., 1.]), tensor(100.))
    """

    def __init__(self, path: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        raise_problems(
            path_problem("path", path),
            number_problem("max_bytes", max_bytes, whole=True, least=0),
        )
        self.path, self._max_bytes = Path(path), max_bytes
        if not self.path.is_file():
            raise PrunusError(
                f"{path} is a folder: pass the path of a file in it"
                if self.path.is_dir()
                else f"there is no file {path}: pass the path of an existing file"
            )
        try:
            handle: Any = safe_open(self.path, framework="pt")
            self._open_handle: Any = handle
            header = _Header(handle)
        except (SafetensorError, OSError) as error:
            raise SparseFileError(
                _PICKLE.format(path)
                if _is_pickle(self.path)
                else f"{path} is not a whole safetensors file: {error}. {_RESTORE}"
            ) from error
        except InconsistencyError as error:
            raise SparseFileError(f"{path} is damaged: {error}. {_RESTORE}") from error
        self.tied = header.metadata.tied
        self._facts = header.metadata.facts
        self._infos, self._part_keys = header.infos, header.part_keys

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open_handle = None  # safetensors unmaps the file when its handle is freed

    def keys(self) -> list[str]:
        """Return the names of the tensors; a tied tensor once, by its first name."""
        return list(self._infos)

    def metadata(self) -> dict[str, Any]:
        """Return the facts in the file's metadata that the writer added."""
        return dict(self._facts)

    def info(self, name: str) -> TensorInfo:
        """Return how a tensor is stored, without reading it.

        Raises:
            ArgumentError: There is no such tensor.
        """
        first = self.tied.get(name, name)
        if first not in self._infos:
            near = nearest(name, [*self._infos, *self.tied])
            hint = f"did you mean {listing(near)}?" if near else f"it has {listing(self.keys())}"
            raise ArgumentError(f"{self.path} has no tensor {name}; {hint}")
        return self._infos[first]

    def get_tensor(self, name: str) -> torch.Tensor:
        """Return a tensor with its zeros, in its own type.

        Raises:
            SparseFileError: The tensor's data are damaged, or it exceeds ``max_bytes``.
            ArgumentError: There is no such tensor.
        """
        info = self.info(name)
        self._check_size(info, info.dense_bytes)
        with self._report_damage(info):
            values: torch.Tensor = self._handle.get_tensor(info.name)
            scales = self._scales(info)
            if info.encoding == DENSE:
                if scales is None:
                    return values
                of_rows = scales.reshape(-1, *(1 for _ in info.shape[1:]))
                return restore(values, of_rows, info.dtype)
            return self._with_zeros(info, values, scales)

    def get_int8(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a tensor that ``save_sparse(..., dtype="int8")`` has stored, as it is stored.

        Returns:
            The 8-bit integers, zeros included, and the scale of each row (of each first index) in
            float32: the tensor is their product.

        Raises:
            SparseFileError: The tensor's data are damaged, or it exceeds ``max_bytes``.
            ArgumentError: There is no such tensor, or it is stored in its own type.
        """
        info = self.info(name)
        self._check_size(info, info.numel)
        with self._report_damage(info):
            scales = self._scales(info)
            if scales is None:
                raise ArgumentError(
                    f"{name} is stored as {info.dtype} without scales: read it with get_tensor"
                )
            values: torch.Tensor = self._handle.get_tensor(info.name)
            integers = dataclasses.replace(info, dtype=torch.int8)
            if info.encoding != DENSE:
                values = self._with_zeros(integers, values, None)
            return values, scales

    def _with_zeros(
        self, info: TensorInfo, values: torch.Tensor, scales: torch.Tensor | None
    ) -> torch.Tensor:
        """Return a tensor that has an index.

        Args:
            info: The tensor.
            values: Its stored elements.
            scales: The scales of its rows, or None to use the elements as they are.
        """
        flat = torch.zeros(info.numel, dtype=BIT_TYPES[info.dtype.itemsize])
        target, done = flat.numpy(), 0
        for positions in self._positions(info):
            block = values[done : done + len(positions)]
            if scales is not None:
                rows = torch.from_numpy(positions // info.row_size)
                block = restore(block, scales[rows], info.dtype)
            target[positions] = as_bits(block)
            done += len(positions)
        return flat.view(info.dtype).reshape(info.shape)

    def get_elements(self, name: str) -> torch.Tensor:
        """Return the stored elements of a tensor as a vector, without positions and scales.

        Raises:
            SparseFileError: The file is damaged.
            ArgumentError: There is no such tensor.
        """
        info = self.info(name)
        with self._report_damage(info):
            values: torch.Tensor = self._handle.get_tensor(info.name)
            return values.reshape(-1)

    def get_csr(self, name: str) -> torch.Tensor:
        """Return a tensor as a matrix of layout ``torch.sparse_csr``, without memory for zeros.

        The rows are the tensor's first dimension; all others are flattened into the columns.

        Raises:
            SparseFileError: The tensor's data are damaged, or the matrix exceeds ``max_bytes``.
            ArgumentError: There is no such tensor, or it has no dimension.
        """
        info = self.info(name)
        if not info.shape:
            raise ArgumentError(f"{name} is a single number, which has no rows")
        height, width = info.shape[0], info.row_size
        # A position and a column of 8 bytes for each element.
        needed = (16 + info.dtype.itemsize) * info.stored_elements + 8 * height
        self._check_size(info, needed)
        with self._report_damage(info):
            values: torch.Tensor = self._handle.get_tensor(info.name).reshape(-1)
            if info.encoding == DENSE:
                positions = np.flatnonzero(as_bits(values))
                values = values[torch.from_numpy(positions)]
            else:
                blocks = list(self._positions(info))
                positions = np.concatenate(blocks) if blocks else np.empty(0, np.int64)
            if (scales := self._scales(info)) is not None:
                values = restore(
                    values, scales[torch.from_numpy(positions // max(1, width))], info.dtype
                )
            pointers = np.searchsorted(positions, np.arange(height + 1, dtype=np.int64) * width)
            columns = torch.from_numpy(positions % max(1, width))
            if not len(columns):  # NumPy's stride is 0 then, which torch before 2.11 rejects
                columns = torch.empty(0, dtype=torch.int64)
            with warnings.catch_warnings():
                # The caller asked for this layout and need not be warned that it is new to torch.
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
                return torch.sparse_csr_tensor(
                    torch.from_numpy(pointers),
                    columns,
                    values,
                    (height, width),
                    check_invariants=True,
                )

    @property
    def _handle(self) -> Any:
        if self._open_handle is None:
            raise PrunusError(f"{self.path} is closed: read from it within its with block")
        return self._open_handle

    def _scales(self, info: TensorInfo) -> torch.Tensor | None:
        """Return the scales of a tensor's rows, or None if it has none.

        Raises:
            InconsistencyError: A scale is not a finite number above 0.
        """
        if not info.has_scales:
            return None
        scales: torch.Tensor = self._handle.get_tensor(self._part_keys[info.name][SCALES])
        if not bool(((scales > 0) & scales.isfinite()).all()):
            raise InconsistencyError("a scale is not a finite number above 0")
        return scales

    def _positions(self, info: TensorInfo) -> Iterator[npt.NDArray[np.int64]]:
        keys = self._part_keys[info.name]
        index = {
            part: self._handle.get_tensor(keys[part]).numpy()
            for part in ENCODINGS[info.encoding].parts
        }
        return ENCODINGS[info.encoding].decode(index, info.shape, info.stored_elements)

    def _check_size(self, info: TensorInfo, needed: int) -> None:
        if needed > self._max_bytes:
            tensor = f"{info.name} of {self.path}"
            raise SparseFileError(_too_large(tensor, needed, self._max_bytes))

    @contextlib.contextmanager
    def _report_damage(self, info: TensorInfo) -> Iterator[None]:
        """Raise a SparseFileError that names the file and the tensor where its data are damaged."""
        try:
            yield
        except (InconsistencyError, SafetensorError) as error:
            raise SparseFileError(
                f"{self.path} is damaged: {info.name}: {error}. {_RESTORE}"
            ) from error


def _too_large(what: str, needed: int, max_bytes: int) -> str:
    return (
        f"reading {what} takes {needed:,} bytes, above max_bytes, {max_bytes:,}: if you trust the "
        "file, raise max_bytes"
    )


class _Header:
    """The checked header of a file.

    Args:
        handle: The file, opened by safetensors.

    Attributes:
        metadata: The parsed metadata.
        infos: How each tensor is stored, by its name.
        part_keys: The names of the parts of each tensor that has any, by its name.

    Raises:
        InconsistencyError: The header contradicts itself.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._keys = frozenset(handle.keys())
        self.metadata: Metadata = read_metadata(handle.metadata() or {})
        entries = self.metadata.entries
        self.part_keys = {name: entry.part_keys(name) for name, entry in entries.items()}
        used = self._check_keys()
        self.infos = {name: self._info(name, entry) for name, entry in entries.items()}
        for name in sorted(self._keys - used):
            dtype, shape = self._slice(name)
            numel = math.prod(shape)
            size = numel * dtype.itemsize
            self.infos[name] = TensorInfo(name, shape, dtype, dtype, DENSE, numel, size)
        self._check_ties()

    def _check_keys(self) -> set[str]:
        """Check that all tensors and parts are present, each once, and return their names."""
        used = set(self.part_keys)
        missing: list[str] = []
        for name, parts in self.part_keys.items():
            missing += [key for key in (name, *parts.values()) if key not in self._keys]
            shared = used.intersection(parts.values())
            if shared:
                raise InconsistencyError(f"{listing(sorted(shared))} belongs to two tensors")
            used.update(parts.values())
        if missing:
            raise InconsistencyError(f"the file lacks {listing(missing)}")
        return used

    def _info(self, name: str, entry: TensorEntry) -> TensorInfo:
        shape = entry.shape
        dtype, stored_shape = self._slice(name)
        expected_shape = shape if entry.encoding == DENSE else stored_shape[:1]
        if stored_shape != expected_shape or dtype.itemsize not in BIT_TYPES:
            expected = f"of shape {shape}" if entry.encoding == DENSE else "a vector"
            raise InconsistencyError(
                f"the elements of {name} must be {expected}, but have shape {stored_shape}"
            )
        if entry.restored is not None and dtype != torch.int8:
            raise InconsistencyError(f"{name} has scales, but is of {dtype} instead of torch.int8")
        count = math.prod(stored_shape)
        size = count * dtype.itemsize
        for part, key in self.part_keys[name].items():
            part_dtype, part_shape = self._slice(key)
            expected = entry.part_types[part]
            if len(part_shape) != 1 or str(part_dtype) != f"torch.{expected}":
                raise InconsistencyError(
                    f"{key} must be a vector of {expected}, but is {part_dtype} of shape "
                    f"{part_shape}"
                )
            if part == SCALES and part_shape != shape[:1]:
                raise InconsistencyError(
                    f"{key} must have a scale for each of the {shape[0]:,} rows of {name}, but has "
                    f"{part_shape[0]:,}"
                )
            size += part_shape[0] * part_dtype.itemsize
        if count > math.prod(shape):
            raise InconsistencyError(f"{name} of shape {shape} cannot have {count:,} elements")
        if entry.encoding != DENSE and not ENCODINGS[entry.encoding].supports(shape):
            raise InconsistencyError(
                f"{name} of shape {shape} cannot have the index {entry.encoding}"
            )
        return TensorInfo(name, shape, entry.restored or dtype, dtype, entry.encoding, count, size)

    def _slice(self, key: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return type and shape of a tensor of the safetensors file."""
        stored = self._handle.get_slice(key)
        dtype, shape = stored.get_dtype(), tuple(stored.get_shape())
        if dtype not in DTYPES:
            raise InconsistencyError(f"{key} has the type {dtype}, which this torch does not have")
        if not can_allocate(shape):
            raise InconsistencyError(f"{key} has a shape that no tensor can have")
        return DTYPES[dtype], shape

    def _check_ties(self) -> None:
        wrong = [
            f"{alias} to {name}"
            for alias, name in self.metadata.tied.items()
            if name not in self.infos or alias in self._keys
        ]
        if wrong:
            raise InconsistencyError(
                f"the metadata tie {listing(wrong)}, which must be an absent name to a present one"
            )


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins as those that ``torch.save`` writes, now or long ago."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))
