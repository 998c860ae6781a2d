"""Sparse files: safetensors that hold the non-zero elements of each tensor, and where they are.

The format is specified in ``docs/sparse-files.md``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn.parameter import is_lazy

from prunus._distributed.shards import is_sharded
from prunus._distributed.wrappers import unwrap
from prunus._utils.checks import choice_problem, raise_problems, type_problem
from prunus._utils.files import memory_key, write_atomically
from prunus.errors import PrunusError, SparseFileError, listing, nearest
from prunus.export.encodings import ENCODINGS, BadIndexError
from prunus.export.loading import load_state

__all__ = ["SparseFile", "StoredTensor", "as_bits", "load_sparse", "save_sparse", "size_bound"]

VERSION = 1

LIMIT = 1 << 36
"""Bytes, 64 GiB: what the tensors of a file may come to, unless the reader says otherwise."""

_ENTRY = 120
"""About how many bytes the header spends on a tensor that is not stored whole."""

_FEW = 1000
"""Elements of -0.0 that are not worth a warning."""

_MOST_DIMENSIONS = 64

_PATH = (str, os.PathLike)

_TYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""What safetensors call torch's types."""

_BITS: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}
"""A type that torch indexes, by its bytes: elements are compared and moved as bits."""


@dataclass(frozen=True)
class StoredTensor:
    """How a tensor lies in a sparse file.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its type.
        encoding: How the file says where its non-zero elements are; "dense" if it holds them all.
        stored: How many elements the file holds.
        bytes: How many bytes they and their index take, without the file's header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    encoding: str
    stored: int
    bytes: int

    @property
    def numel(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """How many bytes it takes in memory."""
        return self.numel * self.dtype.itemsize


def save_sparse(
    model: nn.Module | Mapping[str, torch.Tensor],
    path: str | Path,
    *,
    encoding: str = "smallest",
    keep_negative_zeros: bool = True,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a network's tensors, without their zeros, to one safetensors file.

    Nothing is lost: every bit of every element comes back. An element is left out if all its bits
    are 0, so that -0.0 and every NaN are kept. A tensor that is there under several names (tied
    weights) is stored once.

    Args:
        model: A module, of which the ``state_dict`` is taken, also from within ``torch.compile`` or
            DistributedDataParallel; or one such.
        path: The file to write or replace.
        encoding: How to say where the elements are: "smallest" chooses for each tensor among all;
            "bitmap", "columns" or "gaps" is taken wherever it can be and is smaller than all
            elements ("columns" can be read without decoding).
        keep_negative_zeros: False to write -0.0 as 0.0, which is equal to it in all comparisons.
            Weights that were multiplied by a mask of 0 and 1 are -0.0 where they were negative.
        about: Facts to keep in the file's metadata, such as can be said in JSON.

    Warns:
        UserWarning: More than a tenth of a tensor's elements to store, and a thousand, are -0.0.

    Raises:
        PrunusError: Something in the state is not a tensor, or is only a part of one; there is no
            such encoding; or the file cannot be written. An old file is then untouched.

    Example:
        >>> import tempfile
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
    known = ("smallest", *ENCODINGS)
    raise_problems(
        type_problem(
            "model",
            model,
            (nn.Module, Mapping),
            "a torch.nn.Module or its state_dict",
            mend="the order is save_sparse(model, path)",
        ),
        type_problem("path", path, _PATH, "a path"),
        choice_problem("encoding", encoding, known),
    )
    file = Path(path)
    tensors, tied = _split(unwrap(model).state_dict() if isinstance(model, nn.Module) else model)
    described: dict[str, dict[str, Any]] = {}
    out: dict[str, torch.Tensor] = {}
    negative: list[str] = []
    for name, tensor in tensors.items():
        # A copy of its own: safetensors refuses tensors that share memory.
        tensor = tensor.cpu().clone(memory_format=torch.contiguous_format)
        positions = np.flatnonzero(as_bits(tensor))
        zeros = _negative_zeros(tensor, positions)
        if not keep_negative_zeros:
            as_bits(tensor)[positions[zeros]] = 0
            positions = positions[~zeros]
        elif np.count_nonzero(zeros) > max(_FEW, len(positions) // 10):
            negative.append(name)
        parts, chosen = _encoded(tensor, positions, encoding)
        if chosen == "dense":
            out[name] = parts[""]
            continue
        described[name] = {"shape": list(tensor.shape), "index": chosen}
        slash = "/"
        while any(f"{name}{slash}{part}" in tensors for part in parts if part):
            slash += "/"  # for someone's tensor has the name that a part of this one would have
            described[name]["slash"] = slash
        out |= {f"{name}{slash}{part}" if part else name: data for part, data in parts.items()}
    if negative:
        warnings.warn(
            f"many zeros of {listing(negative)} are -0.0, as after a multiplication by a mask, and "
            "are stored like other elements: pass keep_negative_zeros=False to drop them",
            stacklevel=2,
        )
    held: dict[str, Any] = {**(about or {}), "sparse": VERSION, "tensors": described}
    if tied:
        held["tied"] = tied
    try:
        text = json.dumps(held, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise PrunusError(f"about must hold what JSON can say: {error}") from error
    # One key of metadata, for the order of several is drawn anew by each writing.
    write_atomically(file, save(out, {"prunus": text}))


def load_sparse(
    path: str | Path, model: nn.Module | None = None, *, limit: int = LIMIT
) -> dict[str, torch.Tensor]:
    """Read all tensors of a sparse file, or of any safetensors file.

    Args:
        path: The file.
        model: A module of the same architecture to load them into, as ``load_state_dict`` does; it
            is left as it was if they do not fit, or if its types would round them.
        limit: The bytes that the tensors may come to, for a small file can hold a great many zeros.

    Returns:
        The tensors by name; tied ones are one tensor.

    Raises:
        SparseFileError: The file is damaged or hostile, or its tensors are beyond the limit.
        PrunusError: There is no such file, or it does not fit the model.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_sparse({"a": torch.eye(100)}, path)
        >>> load_sparse(path)["a"].sum()
        tensor(100.)
    """
    with SparseFile(path, limit=limit) as file:
        needed = sum(file[name].dense_bytes for name in file.tensors)
        if needed > limit:
            raise SparseFileError(
                f"the tensors of {path} come to {needed:,} bytes, above the limit of {limit:,}: if "
                "you trust the file, raise the limit"
            )
        read = {name: file.read(name) for name in file.tensors}
        state = read | {alias: read[name] for alias, name in file.tied.items()}
    if model is not None:
        load_state(model, state, path)
    return state


class SparseFile:
    """A sparse file, or any safetensors file, from which tensors are read one by one.

    Args:
        path: The file.
        limit: The most bytes that a tensor read from it may come to.

    Attributes:
        path: The file.
        tensors: The names of its tensors, tied ones by their first name.
        tied: The first name of each tied tensor by its other names.
        about: What else the metadata says.

    Raises:
        SparseFileError: The file is damaged or hostile.
        PrunusError: There is no such file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_sparse({"a": torch.eye(100), "b": torch.ones(3)}, path)
        >>> with SparseFile(path) as file:
        ...     file["a"].encoding, file["a"].stored, file["b"].encoding
        ...     file.csr("a").values().sum()
        ('gaps', 100, 'dense')
        tensor(100.)
    """

    def __init__(self, path: str | Path, *, limit: int = LIMIT) -> None:
        self.path, self._limit = _path(path), limit
        if not self.path.is_file():
            raise PrunusError(
                f"{path} is a folder" if self.path.is_dir() else f"there is no file {path}"
            )
        try:
            opened: Any = safe_open(self.path, framework="pt")
            self._opened: Any = opened
            self._keys = frozenset(self._file.keys())
            metadata = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise SparseFileError(f"{path} is not a whole safetensors file: {error}") from error
        try:
            described, self.tied, self.about = _described(metadata)
            self._stored = dict(self._entries(described))
            self._check_names()
        except BadIndexError as error:
            raise SparseFileError(f"{path} is damaged: {error}") from error

    @property
    def _file(self) -> Any:
        if self._opened is None:
            raise PrunusError(f"{self.path} is closed: read from it within its with block")
        return self._opened

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened = None  # which unmaps it

    @property
    def tensors(self) -> Sequence[str]:
        """The names of the tensors, tied ones by their first name."""
        return list(self._stored)

    def __getitem__(self, name: str) -> StoredTensor:
        """Return how a tensor lies in the file, without reading it."""
        return self._stored[self._first(name)]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, zeros and all.

        Raises:
            SparseFileError: What the file holds of it is damaged, or it is beyond the limit.
            PrunusError: There is no such tensor.
        """
        stored = self[name]
        self._check_limit(stored)
        with self._blaming(stored):
            values: torch.Tensor = self._file.get_tensor(stored.name)
            if stored.encoding == "dense":
                return values
            bits = _BITS[stored.dtype.itemsize]
            flat = torch.zeros(stored.numel, dtype=bits)
            into, elements, done = flat.numpy(), values.view(bits).numpy(), 0
            for positions in self._positions(stored):
                into[positions] = elements[done : done + len(positions)]
                done += len(positions)
            return flat.view(stored.dtype).reshape(stored.shape)

    def elements(self, name: str) -> torch.Tensor:
        """Return the elements that the file holds of a tensor, in a row, without their places.

        Raises:
            SparseFileError: The file is damaged.
            PrunusError: There is no such tensor.
        """
        stored = self[name]
        with self._blaming(stored):
            held: torch.Tensor = self._file.get_tensor(stored.name)
            return held.reshape(-1)

    def csr(self, name: str) -> torch.Tensor:
        """Return a tensor as one of layout ``torch.sparse_csr``, whose zeros take no memory.

        Its rows are the first dimension, all others together its columns.

        Raises:
            SparseFileError: What the file holds of it is damaged, or beyond the limit.
            PrunusError: There is no such tensor, or it has no dimension.
        """
        stored = self[name]
        if not stored.shape:
            raise PrunusError(f"{name} is a single number, which has no rows")
        height, width = stored.shape[0], math.prod(stored.shape[1:])
        # Positions and columns of 8 bytes, and the elements.
        self._check_limit(stored, (16 + stored.dtype.itemsize) * stored.stored + 8 * height)
        with self._blaming(stored):
            values: torch.Tensor = self._file.get_tensor(stored.name).reshape(-1)
            if stored.encoding == "dense":
                positions = np.flatnonzero(as_bits(values))
                values = values[torch.from_numpy(positions)]
            else:
                blocks = list(self._positions(stored))
                positions = np.concatenate(blocks) if blocks else np.empty(0, np.int64)
            begins = np.searchsorted(positions, np.arange(height + 1, dtype=np.int64) * width)
            columns = positions % max(1, width)
            with warnings.catch_warnings():
                # That torch's support of this layout is young: who asked for it knows.
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
                return torch.sparse_csr_tensor(
                    torch.from_numpy(begins),
                    torch.from_numpy(columns),
                    values,
                    (height, width),
                    check_invariants=True,
                )

    def _positions(self, stored: StoredTensor) -> Iterator[npt.NDArray[np.int64]]:
        encoding = ENCODINGS[stored.encoding]
        keys = self._parts[stored.name]
        parts = {part: self._file.get_tensor(key).numpy() for part, key in keys.items()}
        return encoding.decode(parts, stored.shape, stored.stored)

    def _first(self, name: str) -> str:
        first = self.tied.get(name, name)
        if first not in self._stored:
            near = nearest(name, [*self._stored, *self.tied])
            hint = f"did you mean {listing(near)}?" if near else f"it has {listing(self.tensors)}"
            raise PrunusError(f"{self.path} has no tensor {name}; {hint}")
        return first

    def _check_limit(self, stored: StoredTensor, needed: int | None = None) -> None:
        needed = stored.dense_bytes if needed is None else needed
        if needed > self._limit:
            raise SparseFileError(
                f"{stored.name} of {self.path} comes to {needed:,} bytes, above the limit of "
                f"{self._limit:,}: if you trust the file, raise the limit"
            )

    @contextlib.contextmanager
    def _blaming(self, stored: StoredTensor) -> Iterator[None]:
        try:
            yield
        except (BadIndexError, SafetensorError) as error:
            raise SparseFileError(f"{self.path} is damaged: {stored.name}: {error}") from error

    def _entries(self, described: Mapping[str, Any]) -> Iterator[tuple[str, StoredTensor]]:
        """Yield how each tensor lies in the file; note the keys of its parts."""
        self._parts: dict[str, dict[str, str]] = {}
        missing: list[str] = []
        taken = set(described)
        for name, about in described.items():
            shape, encoding, slash = _checked(name, about)
            parts = {part: f"{name}{slash}{part}" for part in ENCODINGS[encoding].parts}
            self._parts[name] = parts
            missing += [key for key in (name, *parts.values()) if key not in self._keys]
            twice = taken.intersection(parts.values())
            if twice:
                raise BadIndexError(f"{listing(sorted(twice))} belongs to two tensors")
            taken.update(parts.values())
            if missing:
                continue
            dtype, held = self._slice(name)
            if len(held) != 1 or dtype.itemsize not in _BITS:
                raise BadIndexError(f"the elements of {name} must be a row, but are {held}")
            size = held[0] * dtype.itemsize
            for part, key in parts.items():
                found, dimensions = self._slice(key)
                wanted = ENCODINGS[encoding].parts[part]
                if len(dimensions) != 1 or str(found) != f"torch.{wanted}":
                    raise BadIndexError(f"{key} must be a row of {wanted}, but is {found}")
                size += dimensions[0] * found.itemsize
            numel = math.prod(shape)
            if held[0] > numel:
                raise BadIndexError(f"{name} cannot have {held[0]:,} elements of shape {shape}")
            if not ENCODINGS[encoding].fits(shape):
                raise BadIndexError(f"{name} of shape {shape} cannot have the index {encoding}")
            yield name, StoredTensor(name, shape, dtype, encoding, held[0], size)
        if missing:
            raise BadIndexError(f"it lacks {listing(missing)}")
        for name in sorted(self._keys - taken):
            dtype, shape = self._slice(name)
            numel = math.prod(shape)
            yield name, StoredTensor(name, shape, dtype, "dense", numel, numel * dtype.itemsize)

    def _slice(self, key: str) -> tuple[torch.dtype, tuple[int, ...]]:
        part = self._file.get_slice(key)
        kind = part.get_dtype()
        if kind not in _TYPES:
            raise BadIndexError(f"{key} is of type {kind}, which this torch does not know")
        shape = tuple(part.get_shape())
        if not _can_be(shape):
            raise BadIndexError(f"{key} has a shape that no tensor has")
        return _TYPES[kind], shape

    def _check_names(self) -> None:
        """Make sure that tied tensors are tied to some that are there."""
        wrong = [
            f"{alias} to {name}"
            for alias, name in self.tied.items()
            if name not in self._stored or alias in self._keys
        ]
        if wrong:
            raise BadIndexError(f"it ties {listing(wrong)}")


def size_bound(numel: int, kept: int, bits: int) -> float:
    """Return how many bytes a tensor takes at least whose zeros lie at random.

    kept · (bits + H₂(p) / p) / 8 with p = kept / numel and the entropy H₂ in bits: what the values
    take, and what it takes to say where they are.

    Example:
        >>> round(size_bound(numel=1_000_000, kept=100_000, bits=32))
        458624
    """
    if not 0 < kept < numel:
        return kept * bits / 8
    p = kept / numel
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    return (kept * bits + numel * entropy) / 8


def _path(path: str | Path) -> Path:
    raise_problems(type_problem("path", path, _PATH, "a path"))
    return Path(path)


def _split(
    state: Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors, each once, and the first name of tied ones by their other names."""
    unfit = [f"{name!r} is no name" for name in state if not isinstance(name, str)]
    unfit += [f"{name} is {why}" for name, value in state.items() if (why := _unfit(value))]
    if unfit:
        raise PrunusError(f"a sparse file holds whole tensors alone, but {listing(unfit)}")
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        key = memory_key(tensor)
        known = name if key is None else first.setdefault(key, name)
        if known == name:
            tensors[name] = tensor.detach()
        else:
            tied[name] = known
    return tensors, tied


def _unfit(value: object) -> str | None:
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if is_lazy(value):
        return "not initialized yet: run the model once first"
    if is_sharded(value):
        return "held by several processes: gather the state first"
    if value.is_meta:
        return "without data, on the meta device"
    if value.layout != torch.strided:
        return f"of layout {value.layout}: make it dense by to_dense()"
    if value.dtype not in _TYPES.values():
        return f"of type {value.dtype}, which safetensors cannot hold"
    return None


def _negative_zeros(
    tensor: torch.Tensor, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which of the elements at these positions, none of them 0, are -0.0."""
    if not tensor.is_floating_point():
        return np.zeros(len(positions), np.bool_)
    found: npt.NDArray[np.bool_] = as_bits(tensor)[positions] << 1 == 0  # the sign's bit alone
    return found


def as_bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor's elements, in a row, as whole numbers of the same bits."""
    bits: npt.NDArray[Any] = tensor.reshape(-1).view(_BITS[tensor.dtype.itemsize]).numpy()
    return bits


def _encoded(
    tensor: torch.Tensor, positions: npt.NDArray[np.int64], wanted: str
) -> tuple[dict[str, torch.Tensor], str]:
    """Return what to store of a tensor, its elements under the empty name, and the encoding."""
    whole = {"": tensor}
    least = tensor.numel() * tensor.dtype.itemsize - _ENTRY
    if tensor.ndim == 0 or least <= 0:
        return whole, "dense"
    elements, shape = as_bits(tensor)[positions], tuple(tensor.shape)
    best, chosen = whole, "dense"
    for name, encoding in ENCODINGS.items():
        if wanted not in ("smallest", name) or not encoding.fits(shape):
            continue
        if elements.nbytes + encoding.size(len(positions), shape) >= least:
            continue
        parts = encoding.encode(positions, shape)
        size = elements.nbytes + sum(part.nbytes for part in parts.values())
        if size < least:
            values = torch.from_numpy(elements).view(tensor.dtype)
            best = {"": values} | {part: torch.from_numpy(data) for part, data in parts.items()}
            least, chosen = size, name
    return best, chosen


def _described(
    metadata: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Return what the metadata say of tensors, of tied ones, and besides."""
    try:
        held = json.loads(metadata.get("prunus", "{}"))
    except (ValueError, RecursionError) as error:
        raise BadIndexError(f"its metadata are no JSON ({error})") from error
    if not isinstance(held, dict):
        raise BadIndexError("its metadata are no JSON object")
    if "sparse" not in held:  # an ordinary file
        return {}, {}, held
    version = held.pop("sparse")
    if version != VERSION:
        raise BadIndexError(
            f"it is of version {str(version)[:20]} of the format, and this prunus knows {VERSION}"
        )
    described, tied = held.pop("tensors", None), held.pop("tied", {})
    for value, what in ((described, "tensors"), (tied, "tied")):
        if not isinstance(value, dict):
            raise BadIndexError(f"its metadata lack the object {what!r}")
    if not all(isinstance(name, str) for name in tied.values()):
        raise BadIndexError("its metadata tie tensors to something that is no name")
    return described, tied, held


def _can_be(shape: Sequence[int]) -> bool:
    """Return whether torch can count a tensor's bytes, were its empty dimensions of one element."""
    if len(shape) > _MOST_DIMENSIONS or any(size >= 1 << 63 for size in shape):
        return False
    return math.prod(max(1, size) for size in shape) < 1 << 60


def _checked(name: str, about: Any) -> tuple[tuple[int, ...], str, str]:
    """Return the shape, the encoding and what joins a part's name to the tensor's."""
    about = about if isinstance(about, dict) else {}
    shape, encoding, slash = about.get("shape"), about.get("index"), about.get("slash", "/")
    if (
        not isinstance(shape, list)
        or not shape
        or not all(type(size) is int and size >= 0 for size in shape)
        or not _can_be(shape)
    ):
        raise BadIndexError(f"it does not say the shape of {name}")
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        known = listing(list(ENCODINGS))
        raise BadIndexError(f"{name} must have an index of {known}, not {str(encoding)[:20]!r}")
    if not isinstance(slash, str) or not slash or slash.strip("/"):
        raise BadIndexError(f"the parts of {name} are nowhere")
    return tuple(shape), encoding, slash
