"""Damaged checkpoints and checkpoints of other runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import contents, prunus, settings
from helpers.runs import HARD, assert_same_run
from prunus._utils.files import load_tree, save_tree


@pytest.fixture
def unfinished(finished_hard_run: Path, tmp_path: Path) -> Path:
    """A run that was killed just before delivery, with a single checkpoint."""
    path = shutil.copytree(finished_hard_run, tmp_path / "unfinished")
    (path / "summary.json").unlink()
    (path / "model.safetensors").unlink()
    (path / "checkpoints" / "previous.safetensors").unlink()
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000:] = bytes(1000)  # as after a power cut: of the right length, but zeros
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, alter, Path.unlink])
def test_previous_checkpoint_is_used_if_the_newest_is_damaged(
    finished_hard_run: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = shutil.copytree(finished_hard_run, tmp_path / "copy")
    (path / "summary.json").unlink()
    (path / "model.safetensors").unlink()
    last = path / "checkpoints" / "last.safetensors"
    damage(last)
    outcome = prunus("run", "digits", *settings(**HARD), "--out", path, "--resume")
    assert outcome.code == 0, outcome.err
    assert str(last) in outcome.out
    assert "Resuming from the previous one" in outcome.out
    assert_same_run(path, finished_hard_run)


def test_two_damaged_checkpoints_are_both_reported(finished_hard_run: Path, tmp_path: Path) -> None:
    path = shutil.copytree(finished_hard_run, tmp_path / "copy")
    (path / "summary.json").unlink()
    cut(path / "checkpoints" / "last.safetensors")
    alter(path / "checkpoints" / "previous.safetensors")
    before = contents(path)
    outcome = prunus("run", "digits", *settings(**HARD), "--out", path, "--resume")
    outcome.refused(
        "last.safetensors is damaged", "the previous one cannot be used either", "altered"
    )
    assert contents(path) == before


def assert_resume_is_rejected(path: Path, *parts: str) -> None:
    """Assert that resuming is rejected for this reason, and that no file changes."""
    before = contents(path)
    outcome = prunus("run", "digits", *settings(**HARD), "--out", path, "--resume")
    outcome.refused("checkpoints/last.safetensors", *parts)
    assert contents(path) == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_checkpoint_is_rejected(unfinished: Path, share: float) -> None:
    last = unfinished / "checkpoints" / "last.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[: int(share * len(whole))])
    assert_resume_is_rejected(unfinished, "is damaged", "start again")


def test_altered_checkpoint_is_rejected(unfinished: Path) -> None:
    last = unfinished / "checkpoints" / "last.safetensors"
    altered = bytearray(last.read_bytes())
    altered[-100] ^= 1
    last.write_bytes(altered)
    assert_resume_is_rejected(unfinished, "was altered after it was written")


def test_model_file_instead_of_a_checkpoint_is_rejected(unfinished: Path) -> None:
    checkpoints = unfinished / "checkpoints"
    shutil.copy(checkpoints / "dense.safetensors", checkpoints / "last.safetensors")
    assert_resume_is_rejected(
        unfinished, "is not a prunus checkpoint: its metadata lacks 'tree', 'digest'"
    )


@pytest.mark.parametrize(
    "keys",
    [
        ("phase",),
        ("epoch",),
        ("partial_epoch",),
        ("model",),
        ("phase_state",),
        ("phase_state", "optimizer"),
        ("phase_state", "scheduler"),
        ("phase_state", "pruner"),
        ("data_order",),
        ("random_state",),
        ("seconds",),
        ("metric_lines",),
        ("dense_metric",),
    ],
    ids=".".join,
)
def test_checkpoint_without_one_of_its_keys_is_rejected(
    unfinished: Path, keys: tuple[str, ...]
) -> None:
    last = unfinished / "checkpoints" / "last.safetensors"
    tree = load_tree(last)
    *parents, key = keys
    part = tree
    for parent in parents:
        part = part[parent]
    del part[key]
    save_tree(last, tree)
    assert_resume_is_rejected(unfinished, "not a checkpoint of this recipe")


def test_checkpoint_of_a_wider_network_is_rejected(unfinished: Path) -> None:
    last = unfinished / "checkpoints" / "last.safetensors"
    tree = load_tree(last)
    tree["model"]["1.weight"] = torch.zeros(301, 64)
    save_tree(last, tree)
    assert_resume_is_rejected(unfinished, "not a checkpoint of this recipe", "1.weight")


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        {"schedule": "gradual"},
        {"schedule": "oneshot"},
        {"alpha": 0.3},
        {"score": "taylor"},
        {"batch_size": 64},
        {"lr": 0.01},
        {"epochs": 9},
        {"seed": 1},
    ],
    ids=lambda other: "-".join(map(str, *other.items())),
)
def test_checkpoint_of_a_run_with_other_settings_is_rejected(
    unfinished: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    chosen = {**HARD, **other}
    seed = str(chosen.pop("seed", 0))
    # Some of these end in an error at the floor, after the checkpoint that is used here.
    path = tmp_path / "other"
    prunus("run", "digits", *settings(**chosen), "--seed", seed, "--out", path)
    held = load_tree(path / "checkpoints" / "last.safetensors")
    assert held["phase"] == "prune"
    shutil.copy(
        path / "checkpoints" / "last.safetensors",
        unfinished / "checkpoints" / "last.safetensors",
    )
    assert_resume_is_rejected(unfinished)
