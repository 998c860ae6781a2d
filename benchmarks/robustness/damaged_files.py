"""Random damage to sparse files, and the outcomes of reading them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prunus import SparseFile, SparseFileError, load_sparse, save_sparse
from prunus.export.encodings import ENCODINGS

NUMBERS = [0, 1, -1, 2, 7, 255, 2**16, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64, 10**30, 0.5]
WORDS = ["", "a", "a/gaps", "a/rows", "gaps", "bitmap", "columns", "dense", "/", "//", "F32", "U8"]
THINGS: list[Any] = [None, True, [], {}, [[]], "x", *WORDS, *NUMBERS]


def bases(folder: Path) -> list[bytes]:
    """Return whole files of every encoding and of several types and shapes, tied tensors too."""
    draw = torch.Generator().manual_seed(0)
    path = folder / "base"
    files = []
    for encoding in ("smallest", *ENCODINGS):
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            weight = torch.randint(1, 100, (20, 60), generator=draw).to(dtype)
            weight[torch.rand(20, 60, generator=draw) < 0.9] = 0
            rest = {"b": torch.ones(3), "c": torch.zeros(4, 0), "d": torch.zeros(30, 2, 9)}
            save_sparse({"a": weight, **rest, "e": weight}, path, encoding=encoding)
            files.append(path.read_bytes())
    # What costs its reader most: few bytes that swell to one for each element, and too few values.
    swollen = ENCODINGS["gaps"].encode(torch.arange(1 << 20).numpy(), (1 << 20,))["gaps"]
    about = {"sparse": 1, "tensors": {"a": {"shape": [1 << 20], "index": "gaps"}}}
    tensors = {"a": torch.ones(1 << 12, dtype=torch.int8), "a/gaps": torch.from_numpy(swollen)}
    save_file(tensors, path, {"prunus": json.dumps(about)})
    return [*files, path.read_bytes()]


def _leaves(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a tree of JSON: what holds it, and where."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _leaves(tree[key])


def _in_header(content: bytes, draw: random.Random) -> bytes:
    """Change something that the header says, so that it is still a header."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        header["__metadata__"]["prunus"] = json.loads(header["__metadata__"]["prunus"])
        holder, key = draw.choice(list(_leaves(header)))
    except (ValueError, KeyError, TypeError, RecursionError):
        return content
    deed = draw.randrange(4)
    if deed == 0:
        del holder[key]
    elif deed == 1 and isinstance(holder, dict):
        holder[draw.choice([*WORDS, "b", "shape", "index", "tied"])] = holder.pop(key)
    elif deed == 2 and type(holder[key]) is int:
        holder[key] += draw.choice([-1, 1, 8])
    else:
        holder[key] = draw.choice(THINGS)
    own = header.get("__metadata__")
    if isinstance(own, dict) and not isinstance(own.get("prunus"), str):
        own["prunus"] = json.dumps(own.get("prunus"))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _in_bytes(content: bytes, draw: random.Random) -> bytes:
    """Change some bytes, or how many there are."""
    held = bytearray(content)
    if not held:
        return content
    begin = draw.randrange(len(held))
    end = min(len(held), begin + draw.choice([1, 2, 8, 100]))
    deed = draw.randrange(7)
    if deed == 0:
        held[begin] ^= 1 << draw.randrange(8)
    elif deed == 1:
        held[begin] = draw.choice([0, 1, 127, 128, 255])
    elif deed == 2:
        held[begin:end] = draw.randbytes(end - begin)
    elif deed == 3:
        del held[begin:end]
    elif deed == 4:
        held[begin:begin] = held[begin:end]
    elif deed == 5:
        del held[begin:]
    else:
        other = draw.randrange(len(held))
        held[begin], held[other] = held[other], held[begin]
    return bytes(held)


def mutants(files: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged files."""
    draw = random.Random(seed)
    for _ in range(count):
        content = draw.choice(files)
        for _ in range(draw.choice([1, 1, 1, 2, 4])):
            deed: Callable[[bytes, random.Random], bytes] = draw.choice([_in_header, _in_bytes])
            content = deed(content, draw)
        yield content


@dataclass
class Outcomes:
    """What reading damaged files came to."""

    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """Seconds."""


def read_all(files: Iterator[bytes], path: Path, limit: int) -> Outcomes:
    """Read each file every way; whatever is raised but the one clear error is passed on."""
    outcomes = Outcomes()
    for content in files:
        path.write_bytes(content)
        begun = time.perf_counter()
        try:
            state = load_sparse(path, max_bytes=limit)
            with SparseFile(path, max_bytes=limit) as file:
                names = file.keys()
                for name in names:
                    if file.info(name).shape:
                        file.get_csr(name)
            assert sum(t.nbytes for t in {id(t): t for t in state.values()}.values()) <= limit
            outcomes.kinds["read"] += 1
        except SparseFileError:
            outcomes.kinds["refused"] += 1
        outcomes.slowest = max(outcomes.slowest, time.perf_counter() - begun)
    return outcomes
