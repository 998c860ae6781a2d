"""Sparse files with random damage, and the outcomes of reading them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prunus import SparseFile, SparseFileError, load_sparse, save_sparse
from prunus.export.encodings import ENCODINGS

__all__ = ["Outcomes", "damaged", "read_all", "valid_files"]

_NUMBERS = [0, 1, -1, 2, 7, 255, 2**16, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64, 10**30, 0.5]
_NAMES = ["", "a", "a/gaps", "a/rows", "gaps", "bitmap", "columns", "dense", "/", "//", "F32", "U8"]
_NAMES += ["a/scales", "I8", "F64", "BF16"]
_VALUES: list[Any] = [None, True, [], {}, [[]], "x", *_NAMES, *_NUMBERS]
"""Values to put into a header: limits of integer types, names that it uses, other JSON types."""


def valid_files(folder: Path) -> list[bytes]:
    """Return valid files of every encoding and several types and shapes, and one that is costly.

    Args:
        folder: A folder for temporary files.
    """
    generator = torch.Generator().manual_seed(0)
    path = folder / "base"
    files = []
    for encoding in ("smallest", *ENCODINGS):
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            weight = torch.randint(1, 100, (20, 60), generator=generator).to(dtype)
            weight[torch.rand(20, 60, generator=generator) < 0.9] = 0
            others = {"b": torch.ones(3), "c": torch.zeros(4, 0), "d": torch.zeros(30, 2, 9)}
            save_sparse({"a": weight, **others, "e": weight}, path, encoding=encoding)
            files.append(path.read_bytes())
        weight = torch.randn(20, 60, generator=generator)
        weight[torch.rand(20, 60, generator=generator) < 0.9] = 0
        state = {"a": weight, "b": torch.randn(9, 50, generator=generator), "c": weight[:, :8]}
        save_sparse(state, path, dtype="int8", encoding=encoding)
        files.append(path.read_bytes())
    # The file that costs its reader most: a small stream of one byte for each element, and too few
    # values.
    size = 1 << 20
    stream = ENCODINGS["gaps"].encode(torch.arange(size).numpy(), (size,))["gaps"]
    metadata = {"sparse": 1, "tensors": {"a": {"shape": [size], "index": "gaps"}}}
    tensors = {"a": torch.ones(1 << 12, dtype=torch.int8), "a/gaps": torch.from_numpy(stream)}
    save_file(tensors, path, {"prunus": json.dumps(metadata)})
    return [*files, path.read_bytes()]


def damaged(files: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield that many damaged versions of randomly drawn files."""
    draw = random.Random(seed)
    for _ in range(count):
        content = draw.choice(files)
        for _ in range(draw.choice([1, 1, 1, 2, 4])):
            damage: Callable[[bytes, random.Random], bytes] = draw.choice(
                [_damage_header, _damage_bytes]
            )
            content = damage(content, draw)
        yield content


def _damage_header(content: bytes, draw: random.Random) -> bytes:
    """Change one entry of the header, so that it is still a header."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        header["__metadata__"]["prunus"] = json.loads(header["__metadata__"]["prunus"])
        container, key = draw.choice(list(_entries(header)))
    except (ValueError, KeyError, TypeError, RecursionError):
        return content
    change = draw.randrange(4)
    if change == 0:
        del container[key]
    elif change == 1 and isinstance(container, dict):
        container[draw.choice([*_NAMES, "b", "shape", "index", "type", "tied"])] = container.pop(
            key
        )
    elif change == 2 and type(container[key]) is int:
        container[key] += draw.choice([-1, 1, 8])
    else:
        container[key] = draw.choice(_VALUES)
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and not isinstance(metadata.get("prunus"), str):
        metadata["prunus"] = json.dumps(metadata.get("prunus"))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _entries(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of every entry of a JSON value, at all depths."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _entries(tree[key])


def _damage_bytes(content: bytes, draw: random.Random) -> bytes:
    """Change, remove, repeat or swap some bytes."""
    if not content:
        return content
    changed = bytearray(content)
    begin = draw.randrange(len(changed))
    end = min(len(changed), begin + draw.choice([1, 2, 8, 100]))
    change = draw.randrange(7)
    if change == 0:
        changed[begin] ^= 1 << draw.randrange(8)
    elif change == 1:
        changed[begin] = draw.choice([0, 1, 127, 128, 255])
    elif change == 2:
        changed[begin:end] = draw.randbytes(end - begin)
    elif change == 3:
        del changed[begin:end]
    elif change == 4:
        changed[begin:begin] = changed[begin:end]
    elif change == 5:
        del changed[begin:]
    else:
        other = draw.randrange(len(changed))
        changed[begin], changed[other] = changed[other], changed[begin]
    return bytes(changed)


@dataclass
class Outcomes:
    """The outcomes of reading files.

    Attributes:
        counts: How many files were "read" and how many "refused" by a SparseFileError.
        slowest: The longest time for one file, in seconds.
    """

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


def read_all(files: Iterable[bytes], path: Path, max_bytes: int) -> Outcomes:
    """Read files in every way; any error other than SparseFileError is passed on.

    Args:
        files: The contents of the files.
        path: Where each is written.
        max_bytes: The largest size of the tensors to read.

    Returns:
        The outcomes.
    """
    outcomes = Outcomes()
    for content in files:
        path.write_bytes(content)
        begin = time.perf_counter()
        try:
            state = load_sparse(path, max_bytes=max_bytes)
            with SparseFile(path, max_bytes=max_bytes) as file:
                names = file.keys()
                for name in names:
                    if file.info(name).shape:
                        file.get_csr(name)
                    if file.info(name).has_scales:
                        file.get_int8(name)
            distinct = {id(tensor): tensor for tensor in state.values()}.values()
            assert sum(tensor.nbytes for tensor in distinct) <= max_bytes
            outcomes.counts["read"] += 1
        except SparseFileError:
            outcomes.counts["refused"] += 1
        outcomes.slowest = max(outcomes.slowest, time.perf_counter() - begin)
    return outcomes
