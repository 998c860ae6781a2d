"""The directory of a run: locked by one process, and without lost or left-over files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import SHORT, contents, metrics, mounted, prunus, settings, summary
from prunus._utils.files import load_tree
from prunus.errors import CheckpointError, PrunusError
from prunus.recipes.run.directory import RunDirectory

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    assert prunus("run", "digits", *SHORT, "--out", path).code == 0
    return path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def unfinished(copy: Path) -> Path:
    """A run that was killed just before delivery."""
    (copy / "summary.json").unlink()
    (copy / "model.safetensors").unlink()
    return copy


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Path]:
    """A directory that another process has locked."""
    path = tmp_path / "held"
    path.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path / ".lock")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield path
        process.kill()


def test_run_writes_its_files_to_out(finished: Path) -> None:
    assert list(contents(finished)) == [
        ".lock",
        "checkpoints",
        "checkpoints/after-dense.safetensors",
        "checkpoints/dense.safetensors",
        "checkpoints/last.safetensors",
        "checkpoints/previous.safetensors",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "summary.json",
    ]


def test_run_without_out_creates_a_new_directory_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = settings(dense_epochs=1, epochs=1, batch_size=600, floor="none")
    for name in ("digits-seed3", "digits-seed3-2", "digits-seed3-3"):
        outcome = prunus("run", "digits", "--seed", "3", *tiny)
        assert outcome.code == 0
        assert f"written to runs/{name}\n" in outcome.out
        assert summary(tmp_path / "runs" / name)["seed"] == 3
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_directory_in_use_is_rejected_and_unchanged(holder: Path) -> None:
    outcome = prunus("run", "digits", *SHORT, "--out", holder)
    outcome.refused("is in use by another run; wait for it or choose another --out", str(holder))
    assert (holder / ".lock").exists()


def test_run_in_use_cannot_be_resumed(holder: Path, finished: Path) -> None:
    shutil.copytree(finished, holder, dirs_exist_ok=True)
    before = contents(holder)
    prunus("run", "digits", *SHORT, "--out", holder, "--resume").refused("is in use by another run")
    assert contents(holder) == before


def test_directory_is_unlocked_after_its_run(finished: Path) -> None:
    with RunDirectory(finished).claimed(resume=True):
        pass


def test_second_claim_within_one_process_is_rejected(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path / "run").claimed(resume=False),
        pytest.raises(PrunusError, match="in use by another run"),
        RunDirectory(tmp_path / "run").claimed(resume=False),
    ):
        raise AssertionError


def test_file_instead_of_the_directory_is_rejected_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    outcome = prunus("run", "digits", *SHORT, "--out", tmp_path / "out")
    outcome.refused("out is a file; choose another --out")
    assert contents(tmp_path) == {"out": b"precious"}


def test_file_instead_of_a_parent_directory_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    outcome = prunus("run", "digits", *SHORT, "--out", tmp_path / "file" / "out")
    outcome.refused("cannot write", "Not a directory")


def test_directory_with_other_contents_is_rejected_and_lists_some(tmp_path: Path) -> None:
    for name in "gfedcba":
        (tmp_path / name).write_text("precious")
    prunus("run", "digits", *SHORT, "--out", tmp_path).refused(
        "has other contents than a run (it holds a, b, c, d, e and 2 more); choose another --out"
    )
    assert {name: (tmp_path / name).read_text() for name in "abcdefg"} == dict.fromkeys(
        "abcdefg", "precious"
    )


def test_directory_with_other_contents_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    prunus("run", "digits", *SHORT, "--out", tmp_path).refused("has other contents than a run")
    assert contents(tmp_path) == {"precious": b"x"}


def test_empty_directory_is_accepted(tmp_path: Path) -> None:
    outcome = prunus("run", "digits", *settings(dense_epochs=1, epochs=1), "--out", tmp_path)
    assert outcome.code == 0
    assert (tmp_path / "summary.json").exists()


def test_run_is_not_started_over_another(copy: Path) -> None:
    before = contents(copy)
    prunus("run", "digits", *SHORT, "--out", copy).refused(
        "holds a run already; resume it with --resume, or choose another --out"
    )
    assert contents(copy) == before


def test_resume_without_out_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prunus("run", "digits", "--resume").refused(
        "--resume needs --out: pass the directory of the run to resume"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_directory_without_a_run_cannot_be_resumed(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "out").mkdir()
    before = contents(tmp_path)
    prunus("run", "digits", "--resume", "--out", tmp_path / "out").refused(
        "there is no run in", "it has no config.json"
    )
    assert contents(tmp_path) == before


def test_changed_settings_of_a_resumed_run_are_all_listed(unfinished: Path) -> None:
    before = contents(unfinished)
    outcome = prunus(
        *("run", "digits", "--out", unfinished, "--resume", "--seed", "7"),
        *settings(dense_epochs=2, epochs=4, lr=0.07, penalty="none", floor="none", biases="false"),
    )
    outcome.refused(
        "holds another run: biases was True and is False, epochs was 3 and is 4, "
        "floor was 'dense-0.01' and is None, lr was 0.05 and is 0.07, "
        "penalty was 'relevance' and is 'none', seed was 0 and is 7; "
        "resume it with its own settings, or choose another --out"
    )
    assert contents(unfinished) == before


def test_resume_with_another_recipe_is_rejected(unfinished: Path) -> None:
    outcome = prunus("run", "mnist-lenet300", "--out", unfinished, "--resume")
    outcome.refused("holds a run of the recipe digits, not mnist-lenet300", "prunus run digits")


def test_complete_run_shows_its_summary_again(copy: Path, finished: Path) -> None:
    before = contents(copy)
    outcome = prunus("run", "digits", *SHORT, "--out", copy, "--resume")
    assert outcome.code == 0
    assert f"the run in {copy} is complete; nothing is left to do\n" in outcome.out
    assert f"{summary(finished)['nonzero']:,}" in outcome.out
    assert contents(copy) == before


def test_run_killed_before_delivery_delivers_the_same_bits(
    unfinished: Path, finished: Path
) -> None:
    assert prunus("run", "digits", *SHORT, "--out", unfinished, "--resume").code == 0
    for name in ("model.safetensors", "metrics.jsonl", "checkpoints/dense.safetensors"):
        assert (unfinished / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_damaged_file_of_a_run_is_reported(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    outcome = prunus("run", "digits", *SHORT, "--out", copy, "--resume")
    outcome.refused(f"{name} is damaged: ")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "config.json",
            '"seed": 0',
            '"seed": "a"',
            r"config.json is damaged: seed must be int, but is 'a'\. Restore config.json from a ",
        ),
        (
            "config.json",
            '"schedule": "',
            '"schedule": "un',
            r"settings in \S*config.json are damaged: schedule must be iterative, .* but is 'un",
        ),
        (
            "summary.json",
            '"layer_types"',
            '"layers"',
            "summary.json is damaged: it lacks layer_types. Delete it",
        ),
    ],
)
def test_edited_file_of_a_run_is_reported(
    copy: Path, name: str, old: str, new: str, message: str
) -> None:
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    outcome = prunus("run", "digits", "--out", copy, "--resume")
    assert outcome.code == 2
    assert outcome.err.count("error: ") == 1
    assert re.search(message, outcome.err)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_lost_model_file_is_written_again(copy: Path, damage: str) -> None:
    before, path = contents(copy), copy / "model.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000])
    outcome = prunus("run", "digits", *SHORT, "--out", copy, "--resume")
    assert outcome.code == 0
    assert f"{path} is missing or damaged: it is written again\n" in outcome.out
    after = contents(copy)
    assert {name for name in before if before[name] != after[name]} <= {"summary.json"}


def test_damaged_dense_network_is_reported(unfinished: Path) -> None:
    path = unfinished / "checkpoints" / "dense.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    outcome = prunus("run", "digits", *SHORT, "--out", unfinished, "--resume")
    outcome.refused("dense.safetensors")


def test_missing_dense_network_is_reported(unfinished: Path) -> None:
    (unfinished / "checkpoints" / "dense.safetensors").unlink()
    outcome = prunus("run", "digits", *SHORT, "--out", unfinished, "--resume")
    outcome.refused("dense.safetensors")


@pytest.mark.parametrize("out", ["out", "deep/er/out"])
@pytest.mark.parametrize("reason", ["data", "settings", "recipe", "validation"])
def test_run_that_fails_to_start_leaves_no_directory(tmp_path: Path, out: str, reason: str) -> None:
    reasons: dict[str, list[str | Path]] = {
        "data": ["mnist-lenet300", "--data", tmp_path / "absent"],
        "settings": ["digits", "--set", "epochs=0"],
        "recipe": ["digit"],
        "validation": ["digits", "--set", "validation=0.0001"],
    }
    prunus("run", *reasons[reason], "--out", tmp_path / out).refused()
    assert list(tmp_path.iterdir()) == []


def test_run_that_fails_to_start_leaves_the_working_directory_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prunus("run", "digits", "--data", "elsewhere").refused(
        "the recipe digits has embedded data: leave out --data elsewhere"
    )
    assert list(tmp_path.iterdir()) == []


def test_empty_directory_is_kept_when_a_run_fails_to_start(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    prunus("run", "digits", "--data", "elsewhere", "--out", tmp_path / "mine").refused("embedded")
    assert contents(tmp_path) == {"mine": None}


def test_run_starts_over_the_leftovers_of_a_killed_start(tmp_path: Path) -> None:
    """The lock and the directories are created before config.json."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.abc").write_text("{")  # the temporary file of config.json
    outcome = prunus("run", "digits", *settings(dense_epochs=1, epochs=1), "--out", tmp_path)
    assert outcome.code == 0, outcome.err


def test_read_only_disk_is_reported(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        outcome = prunus("run", "digits", *SHORT, "--out", disk / "run")
        outcome.refused("cannot write", "disk/run: Read-only file system")
        assert list(disk.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_forbidden_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    outcome = prunus("run", "digits", *SHORT, "--out", tmp_path / "locked" / "run")
    outcome.refused("cannot write", "Permission denied")


def test_full_disk_before_the_first_checkpoint_is_reported(tmp_path: Path) -> None:
    """The first checkpoint of the dense training takes 400 kB."""
    with mounted(tmp_path / "disk", "size=300k") as disk:
        outcome = prunus("run", "digits", *SHORT, "--out", disk / "run")
        outcome.refused("cannot write", "last.safetensors: No space left on device", "unchanged")
        assert sorted(contents(disk / "run")) == [
            ".lock",
            "checkpoints",
            "config.json",
            "metrics.jsonl",
        ]


def test_run_stopped_by_a_full_disk_resumes_to_the_same_bits(
    tmp_path: Path, finished: Path
) -> None:
    with mounted(tmp_path / "disk", "size=700k") as disk:
        # Room for one checkpoint of the dense training, but not for two.
        run = disk / "run"
        outcome = prunus("run", "digits", *SHORT, "--out", run)
        outcome.refused("last.safetensors: No space left on device", "make room")
        held = load_tree(run / "checkpoints" / "last.safetensors")
        assert (held["phase"], held["epoch"]) == ("dense", 1)
        assert not any("safetensors." in name for name in contents(run)), "no file written aside"

        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert prunus("run", "digits", *SHORT, "--out", run, "--resume").code == 0
        for name in ("model.safetensors", "checkpoints/dense.safetensors"):
            assert (run / name).read_bytes() == (finished / name).read_bytes(), name
        timeless = [{**line, "seconds": None} for line in metrics(run)]
        assert timeless == [{**line, "seconds": None} for line in metrics(finished)]


def test_temporary_files_of_a_killed_run_are_removed(unfinished: Path) -> None:
    before = contents(unfinished)
    for file in [path for path in unfinished.rglob("*") if path.is_file()]:
        if file.name != ".lock":
            file.with_name(f".{file.name}.0123abcd").write_text("half")
    assert len(contents(unfinished)) == len(before) + 6
    with RunDirectory(unfinished).claimed(resume=True):
        assert contents(unfinished) == before


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_both_checkpoints_are_kept_until_the_next_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    directory = RunDirectory(tmp_path)
    directory.checkpoints.folder.mkdir()
    directory.checkpoints.save({"epoch": 1})
    directory.checkpoints.save({"epoch": 2})
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(
        PrunusError, match=r"safetensors: No space left on device\. Files written before"
    ):
        directory.checkpoints.save({"epoch": 3})
    assert contents(tmp_path) == before
    monkeypatch.undo()
    directory.checkpoints.save({"epoch": 3})
    held = [
        load_tree(path)["epoch"]
        for path in (directory.checkpoints.last, directory.checkpoints.previous)
    ]
    assert held == [3, 2]


def test_metrics_are_truncated_to_the_lines_of_the_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for number in range(3):
        directory.append_metrics({"epoch": number})
    with directory.metrics_file.open("a") as file:
        file.write('{"epoch": 3, "los')  # killed while it wrote
    directory.truncate_metrics(2)
    assert metrics(tmp_path) == [{"epoch": 0}, {"epoch": 1}]
    directory.append_metrics({"epoch": 2})
    assert metrics(tmp_path) == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]


def test_numbers_are_equal_to_themselves_after_json(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    identity = {
        "recipe": "a",
        "seed": 0,
        "data": None,
        "dense": None,
        "config": {"lr": 1.0, "validation": 1 / 12},
    }
    directory.write_config(identity)
    directory.check_config(identity)
    assert json.loads(directory.config_file.read_text()) == identity
    with pytest.raises(CheckpointError, match="data was None and is 'x', lr was 1.0 and is None"):
        directory.check_config({**identity, "data": "x", "config": {"validation": 1 / 12}})
