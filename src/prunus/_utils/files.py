"""Atomic writing of files, and checkpoints without pickle.

A checkpoint is a tree of dictionaries, lists, tuples, tensors, numbers, strings, booleans and None,
as every ``state_dict`` is. It is saved as one safetensors file: the tensors as its tensors, the
tree as JSON in its metadata, and a digest of both, so that a file that was truncated or altered is
detected before any of it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from prunus.errors import CheckpointError, PrunusError, listing

__all__ = [
    "digest_tensor",
    "link_or_copy",
    "load_tree",
    "memory_key",
    "report_write_errors",
    "save_tree",
    "write_atomically",
]


@contextlib.contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Raise an error of the system on writing ``path`` as a :class:`PrunusError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        folder = path.parent
        if not folder.exists():
            fix = f"create the directory {folder}, or choose another one"
        else:
            fix = "make room or choose another directory"
        raise PrunusError(
            f"cannot write {path}: {reason}. Files written before are unchanged; {fix}"
        ) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a new file, which then replaces ``path`` atomically."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with report_write_errors(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write a file under a temporary name and rename it: readers see the old or the new file.

    Args:
        path: The file.
        content: Its content.
        previous: The path that keeps the old file, if there is one. Default None: it is deleted.

    Raises:
        PrunusError: The directory is not writable, or the disk is full. The old file is unchanged.
    """
    with _replacing(path) as temporary:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # After the new file is written, so that until then the previous file stays too.
        if previous is not None and path.exists():
            link_or_copy(path, previous)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second path, replacing any file there; a link if the file system has links.

    Raises:
        PrunusError: As :func:`write_atomically`.
    """
    with _replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(source, temporary)


def save_tree(path: Path, tree: dict[str, Any], *, previous: Path | None = None) -> None:
    """Save a checkpoint.

    Args:
        path: The file to write or replace.
        tree: The tree to save; see the module for the types it may contain.
        previous: The path that keeps the replaced file. Default None: it is deleted.

    Raises:
        TypeError: The tree contains another type.
        PrunusError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> save_tree(path, {"step": 3, "betas": (0.9, 0.99), "sum": {0: torch.ones(2)}})
        >>> load_tree(path)
        {'step': 3, 'betas': (0.9, 0.99), 'sum': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encode(tree, "", tensors, {}))
    metadata = {"tree": text, "digest": _digest(text, tensors)}
    write_atomically(path, save(tensors, metadata), previous=previous)


def load_tree(path: Path) -> dict[str, Any]:
    """Load what :func:`save_tree` wrote; nothing in the file can run code.

    Raises:
        CheckpointError: The file is absent, truncated, altered, or not such a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no checkpoint {path}: pass the path of a file that prunus wrote, or start "
            "again"
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({error}); restore it from a copy or start again"
        ) from error
    if "tree" not in metadata or "digest" not in metadata:
        missing = [repr(key) for key in ("tree", "digest") if key not in metadata]
        raise CheckpointError(_foreign_file(path, f"its metadata lacks {listing(missing)}"))
    if _digest(metadata["tree"], tensors) != metadata["digest"]:
        raise CheckpointError(
            f"the checkpoint {path} was altered after it was written: its content does not match "
            "its digest; restore it from a copy or start again"
        )
    try:
        tree = _decode(json.loads(metadata["tree"]), tensors)
        if not isinstance(tree, dict):
            raise TypeError(f"it contains a {type(tree).__name__}")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(_foreign_file(path, str(error))) from error
    return tree


def _foreign_file(path: Path, problem: str) -> str:
    return (
        f"{path} is not a prunus checkpoint: {problem}. Pass a file that prunus wrote, or start "
        "again"
    )


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} ".encode())
        digest_tensor(digest, tensors[name])
    return digest.hexdigest()


def digest_tensor(digest: hashlib.blake2b, tensor: torch.Tensor) -> None:
    """Add the type, shape and bytes of a tensor to a digest."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def memory_key(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Return a key that is equal for tensors that are the same view of the same memory.

    None for a tensor without memory of its own, which equals no other.

    Example:
        >>> a = torch.zeros(2, 3)
        >>> memory_key(a) == memory_key(a.detach()), memory_key(a) == memory_key(a.T)
        (True, False)
    """
    if tensor.layout != torch.strided or tensor.numel() == 0 or tensor.is_meta:
        return None
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _encode(
    value: Any, path: str, tensors: dict[str, torch.Tensor], seen: dict[tuple[Any, ...], str]
) -> Any:
    """Return a tree as JSON; a type that JSON lacks becomes {"is": type, ...}."""
    if isinstance(value, torch.Tensor):
        key = memory_key(value)
        name = path if key is None else seen.setdefault(key, path)
        if name == path:
            # A copy: safetensors rejects tensors that share memory.
            tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"is": "tensor", "name": name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}/{i}", tensors, seen) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"is": "tuple", "items": items}
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"a checkpoint's keys are strings or integers, not {key!r}")
            pairs.append([key, _encode(item, f"{path}/{key!r}", tensors, seen)])
        return {"is": "dict", "items": pairs}
    raise TypeError(f"a checkpoint cannot contain a {type(value).__name__} ({path})")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value["is"] == "tensor":
        # A copy, because one tensor may have been at several places of the tree.
        return tensors[value["name"]].clone()
    if value["is"] == "tuple":
        return tuple(_decode(item, tensors) for item in value["items"])
    return {key: _decode(item, tensors) for key, item in value["items"]}
