"""Checkpoints survive the round trip to the last bit, and nothing else passes for one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from helpers.commands import mounted
from helpers.errors import message_of
from helpers.states import same
from prunus._utils.files import load_tree, save_tree, write_atomically
from prunus.errors import CheckpointError, PrunusError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits at all, in any layout."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    numel = math.prod(shape)
    size = torch.empty(0, dtype=dtype).element_size()
    content = bytearray(draw(st.binary(min_size=numel * size, max_size=numel * size)))
    if dtype == torch.bool:
        content = bytearray(byte & 1 for byte in content)
    if numel == 0:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(content, dtype=dtype).reshape(shape)
    layout = draw(st.sampled_from(["as it is", "transposed", "every other", "expanded"]))
    if layout == "transposed":
        return tensor.permute(tuple(reversed(range(tensor.dim()))))
    if layout == "every other" and tensor.dim():
        return tensor[::2]
    if layout == "expanded":
        return tensor.unsqueeze(0).expand(2, *shape)
    return tensor


ANY_TEXT = st.text(st.characters(exclude_categories=()))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324]),
    ANY_TEXT,
    tensors(),
)
KEYS = st.one_of(ANY_TEXT, st.integers(), st.sampled_from(["is", "items", "name", "'/'", '"', "/"]))
NODES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(tree=st.dictionaries(KEYS, NODES, max_size=5))
def test_a_tree_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    save_tree(path, tree)
    assert same(load_tree(path), tree)


def test_tensors_that_share_memory_come_back_as_two(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_tree(tmp_path / "a", {"whole": whole, "part": whole[2:4], "again": whole})
    tree = load_tree(tmp_path / "a")
    assert tree["whole"].tolist() == tree["again"].tolist() == [0, 1, 2, 3, 4, 5]
    assert tree["part"].tolist() == [2, 3]
    tree["whole"].zero_()
    assert tree["part"].tolist() == [2, 3]


def test_a_parameter_comes_back_as_a_plain_tensor(tmp_path: Path) -> None:
    save_tree(tmp_path / "a", {"w": torch.nn.Parameter(torch.ones(2))})
    loaded = load_tree(tmp_path / "a")["w"]
    assert type(loaded) is torch.Tensor
    assert not loaded.requires_grad


def test_what_an_optimizer_remembers_comes_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, amsgrad=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_tree(tmp_path / "a", {"optimizer": optimizer.state_dict()})
    assert same(load_tree(tmp_path / "a")["optimizer"], optimizer.state_dict())


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({1, 2}, "set"),
        (b"x", "bytes"),
        (1 + 2j, "complex"),
        (np.float32(1), "float32"),
        (np.zeros(2), "ndarray"),
        (object(), "object"),
        (Path("x"), "Path"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_what_a_checkpoint_cannot_hold_is_refused_by_name_and_place(
    tmp_path: Path, value: object, kind: str
) -> None:
    with pytest.raises(TypeError, match=rf"cannot contain a \w*{kind} \(/'deep'/1\)"):
        save_tree(tmp_path / "a", {"deep": [0, value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [None, 1.5, (1, 2)])
def test_other_keys_than_strings_and_integers_are_refused(tmp_path: Path, key: Any) -> None:
    with pytest.raises(TypeError, match="keys are strings or integers, not"):
        save_tree(tmp_path / "a", {"deep": {key: 1}})


SMALL: dict[str, Any] = {
    "step": 3,
    "best": None,
    "betas": (0.9, math.nan),
    "états": {0: torch.tensor([1.5, -2.0]), 1: torch.tensor([True, False])},
    "half": torch.tensor(3.0, dtype=torch.bfloat16),
    "empty": torch.empty(0, 2),
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_tree(tmp_path / "small.safetensors", SMALL)
    return tmp_path / "small.safetensors"


def test_a_file_cut_anywhere_is_a_damaged_checkpoint(small: Path) -> None:
    whole = small.read_bytes()
    for length in range(len(whole)):
        small.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"small\.safetensors is damaged .* start again"):
            load_tree(small)


def test_a_file_with_bytes_after_its_end_is_a_damaged_checkpoint(small: Path) -> None:
    small.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_tree(small)


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_found_out_or_changes_nothing(small: Path) -> None:
    """Where the header is padded with spaces, or a letter of an escape changes case."""
    whole = small.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    harmless = 0
    for position in range(len(whole)):
        for bits in (1 << position % 8, 1 << (position + 5) % 8):
            altered = bytearray(whole)
            altered[position] ^= bits
            small.write_bytes(altered)
            try:
                tree = load_tree(small)
            except CheckpointError as error:
                assert small.name in str(error)  # noqa: PT017
                continue
            assert same(tree, SMALL), (position, bits)
            assert position < header, "every bit of a tensor counts"
            harmless += 1
    assert harmless < 2 * 8  # less than the padding to a multiple of eight


def test_an_altered_weight_is_found_out(small: Path) -> None:
    whole = bytearray(small.read_bytes())
    place = whole.index(struct.pack("<2f", 1.5, -2.0))
    whole[place : place + 4] = struct.pack("<f", 1.25)
    small.write_bytes(whole)
    with pytest.raises(CheckpointError, match="was altered after it was written.*its digest"):
        load_tree(small)


def test_an_altered_number_of_the_tree_is_found_out(small: Path) -> None:
    whole = small.read_bytes()
    assert whole.count(rb"[\"step\", 3]") == 1
    small.write_bytes(whole.replace(rb"[\"step\", 3]", rb"[\"step\", 4]"))
    with pytest.raises(CheckpointError, match="was altered after it was written"):
        load_tree(small)


def test_an_absent_file_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no checkpoint .*absent\.safetensors: pass the path"
    ):
        load_tree(tmp_path / "absent.safetensors")


def test_a_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_tree(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "missing"),
    [
        (None, "'tree', 'digest'"),
        ({"format": "pt"}, "'tree', 'digest'"),
        ({"tree": "{}"}, "'digest'"),
        ({"digest": "00"}, "'tree'"),
    ],
)
def test_a_safetensors_file_of_something_else_is_no_checkpoint(
    tmp_path: Path, metadata: dict[str, str] | None, missing: str
) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a", metadata)
    expected = (
        f"a is not a prunus checkpoint: its metadata lacks {missing}. Pass a file that prunus "
        "wrote, or start again$"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_tree(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"\x80\x05}.", b"PK\x03\x04" * 20, b"{}", b"\xff" * 99])
def test_a_file_of_another_kind_is_a_damaged_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_tree(tmp_path / "a")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        "not JSON",
        '{"is": "tensor", "name": "absent"}',
        '{"is": "dict", "items": [["a", {"is": "tensor", "name": "absent"}]]}',
        '{"is": "dict"}',
        '{"no": "kind"}',
        '{"is": "dict", "items": [[[], 1]]}',
        "[" * 100_000,
    ],
    ids=["list", "number", "text", "tensor", "absent", "items", "kind", "key", "deep"],
)
def test_a_crafted_tree_with_a_matching_digest_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    (tmp_path / "a").write_bytes(save({}, {"tree": text, "digest": digest}))
    with pytest.raises(CheckpointError, match="a is not a prunus checkpoint: .*Pass a file"):
        load_tree(tmp_path / "a")


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"a long first version")
    write_atomically(path, b"short")
    assert path.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    """By the process's umask, as ``open`` does it: others may serve the model."""
    (tmp_path / "plain").write_bytes(b"x")
    write_atomically(tmp_path / "atomic", b"x")
    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in sorted(tmp_path.iterdir())
    }
    assert modes["atomic"] == modes["plain"]


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("write", [lambda path: write_atomically(path, b"new"), "tree"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    write: Callable[[Path], None] | str,
) -> None:
    path = tmp_path / "file"
    save_tree(path, SMALL)
    monkeypatch.setattr(os, call, _full)
    with pytest.raises(
        PrunusError, match=r"cannot write .*file: No space left on device\. .* unchanged; make room"
    ):
        save_tree(path, {"new": 1}) if isinstance(write, str) else write(path)
    assert list(tmp_path.iterdir()) == [path]
    assert same(load_tree(path), SMALL)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    message = message_of(lambda: write_atomically(folder / "file", b""), PrunusError)
    assert message.startswith(f"cannot write {folder / 'file'}: No such file or directory. ")
    assert message.endswith(f"unchanged; create the directory {folder}, or choose another one")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=300k") as disk:
        path = disk / "file"
        write_atomically(path, b"o" * 100_000)
        with pytest.raises(PrunusError, match="No space left on device"):
            write_atomically(path, b"n" * 400_000)
        assert path.read_bytes() == b"o" * 100_000
        assert list(disk.iterdir()) == [path]


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "disk", "ro") as disk,
        pytest.raises(PrunusError, match=r"cannot write .*disk/file: Read-only file system"),
    ):
        write_atomically(disk / "file", b"x")


def test_the_file_is_an_ordinary_safetensors_file(small: Path) -> None:
    """The header's length, the header as JSON with the tree in it, then the tensors' bytes."""
    whole = small.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    begin, end = header["/'états'/0"]["data_offsets"]
    assert whole[8 + length :][begin:end] == struct.pack("<2f", 1.5, -2.0)
    tree = json.loads(header["__metadata__"]["tree"])
    assert ["step", 3] in tree["items"]


def test_a_tied_tensor_is_stored_once(tmp_path: Path) -> None:
    tied = torch.randn(1000)
    tree = {"a": tied, "b": {"c": tied.view(1000), "d": tied.view(10, 100)}}
    save_tree(tmp_path / "once.safetensors", tree)
    assert (tmp_path / "once.safetensors").stat().st_size < 2.5 * 4000  # the matrix is another
    loaded = load_tree(tmp_path / "once.safetensors")
    assert torch.equal(loaded["a"], loaded["b"]["c"])
    loaded["a"].zero_()
    assert torch.equal(loaded["b"]["c"], tied)
