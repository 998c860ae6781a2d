"""Writing files so that they are whole or absent, and checkpoints without pickle.

A checkpoint is a tree of dictionaries, lists, tuples, tensors, numbers, strings, booleans and None,
such as every ``state_dict`` is. It becomes one safetensors file: the tensors as its tensors, the
tree as JSON in its metadata, and a digest of both, so that a file that was cut short or altered is
found out before anything of it is used.
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

from prunus.errors import CheckpointError, PrunusError

__all__ = ["keep_as", "load_tree", "memory_key", "save_tree", "write_atomically", "writing"]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into a message for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PrunusError(
            f"cannot write {path}: {reason}. What was written before is untouched; make room or "
            "choose another directory"
        ) from error


@contextlib.contextmanager
def _put_in_place(path: Path) -> Iterator[Path]:
    """Yield a name aside under which to make a file, which then gets ``path``'s place at once."""
    aside = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with writing(path):
        try:
            yield aside
            aside.replace(path)
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write a file aside, then rename it: a reader sees the old file or the whole new one.

    Args:
        path: The file.
        content: Its content.
        previous: What the old file, if there is one, is called from then on.

    Raises:
        PrunusError: The directory is not writable, or the disk is full. The old file is untouched.
    """
    with _put_in_place(path) as aside:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Only now, so that while the new one is being written there are two old ones.
        if previous is not None and path.exists():
            keep_as(path, previous)


def keep_as(source: Path, target: Path) -> None:
    """Give a file a second name, in place of whatever had it; nothing is copied where links are.

    Raises:
        PrunusError: As :func:`write_atomically`.
    """
    with _put_in_place(target) as aside:
        try:
            os.link(source, aside)
        except OSError:  # a file system without links
            shutil.copyfile(source, aside)


def save_tree(path: Path, tree: dict[str, Any], *, previous: Path | None = None) -> None:
    """Save a checkpoint.

    Args:
        path: The file to write or replace.
        tree: What to save; see the module for what it may hold.
        previous: What the file that is replaced is called from then on.

    Raises:
        TypeError: The tree holds something else.
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
        CheckpointError: The file is absent, cut short, altered, or not such a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({error}); restore it from a copy or start anew"
        ) from error
    if "tree" not in metadata or "digest" not in metadata:
        raise CheckpointError(f"{path} is not a checkpoint of a run: it holds tensors only")
    if _digest(metadata["tree"], tensors) != metadata["digest"]:
        raise CheckpointError(
            f"the checkpoint {path} was altered after it was written: its content does not match "
            "its digest; restore it from a copy or start anew"
        )
    try:
        tree = _decode(json.loads(metadata["tree"]), tensors)
        if not isinstance(tree, dict):
            raise TypeError(f"it holds a {type(tree).__name__}")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a run: {error}") from error
    return tree


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def memory_key(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Return what two tensors have in common that are the same memory seen the same way.

    None for a tensor without memory of its own, which is like no other.

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
    """Turn a tree into JSON. Anything that JSON has no form of becomes {"is": kind, ...}."""
    if isinstance(value, torch.Tensor):
        key = memory_key(value)
        name = path if key is None else seen.setdefault(key, path)
        if name == path:
            # A copy of its own: safetensors refuses tensors that share memory.
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
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} ({path})")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value["is"] == "tensor":
        # A copy, for several places of the tree may have held one tensor.
        return tensors[value["name"]].clone()
    if value["is"] == "tuple":
        return tuple(_decode(item, tensors) for item in value["items"])
    return {key: _decode(item, tensors) for key, item in value["items"]}
