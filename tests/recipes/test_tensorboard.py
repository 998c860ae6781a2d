"""Logs for TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import metrics, prunus, settings
from helpers.reports import HISTORY, epoch, sample_run
from helpers.runs import KilledError, at_step
from prunus.recipes.run.directory import RunDirectory
from prunus.recipes.run.progress import Epoch, PhaseStart
from prunus.recipes.run.tensorboard import TensorBoardLog, scalars

SHORT = settings(dense_epochs=2, epochs=3)
STEPS = 36  # of an epoch


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by name."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def test_scalars_are_those_of_the_epoch() -> None:
    before = Epoch(**epoch("prune", 1, validation_loss=0.25))
    after = Epoch(
        **epoch(
            "prune",
            2,
            validation_loss=0.375,
            extra_metrics={"perplexity": 3.0},
            floor=0.9,
            sparsity=0.5,
            predicted_cost=0.2,
        )
    )
    expected = {
        "validation/accuracy": 0.97,
        "validation/perplexity": 3.0,
        "loss/training": 0.5,
        "loss/validation": 0.375,
        "sparsity": 0.5,
        "floor": 0.9,
        "learning_rate": 0.05,
        "cost/predicted": 0.2,
    }
    # 0.375 − 0.25
    assert dict(scalars(after, before, "accuracy")) == {**expected, "cost/measured": 0.125}
    # Losses before the pruning, or before a return to another network, are no comparison.
    dense = Epoch(**epoch("dense", 1))
    returned = Epoch(**epoch("prune", 1, restored=True))
    for other in (None, dense, returned):
        assert dict(scalars(after, other, "accuracy")) == expected


def test_history_is_written_once_however_often_the_run_begins(tmp_path: Path) -> None:
    directory = RunDirectory(sample_run(tmp_path / "run"))
    phase = PhaseStart("prune", "accuracy", None, 5, 1, 3)
    for number in (4, 5):
        log = TensorBoardLog(directory)
        log.begin(phase)
        log.begin(phase)
        line = epoch("prune", number, validation=number / 8, seconds=2.0)
        directory.append_metrics(line)
        log.epoch(Epoch(**line))
        log.close()
    values = logged(log.folder)["validation/accuracy"]
    assert [step for step, _ in values] == list(range(1, 9))
    expected = [*(line["validation"] for line in HISTORY), 4 / 8, 5 / 8]
    assert [value for _, value in values] == pytest.approx(expected)
    assert len(list(log.folder.iterdir())) == 1


@pytest.mark.slow
def test_run_killed_and_resumed_has_every_epoch_once(tmp_path: Path) -> None:
    command = ["run", "digits", *SHORT, "--out", str(tmp_path / "run"), "--log", "tensorboard"]
    for resume in ([], ["--resume"]):
        with at_step(2 * STEPS, KilledError), pytest.raises(KilledError):
            prunus(*command, *resume)
    done = prunus(*command, "--resume")
    assert done.code == 0, done
    folder = tmp_path / "run" / "tensorboard"
    assert f"tensorboard --logdir {folder}" in done.out
    found, lines = logged(folder), metrics(tmp_path / "run")
    assert len(lines) == 5
    for name, key in {
        "validation/accuracy": "validation",
        "loss/training": "loss",
        "loss/validation": "validation_loss",
        "sparsity": "sparsity",
        "learning_rate": "lr",
    }.items():
        assert [step for step, _ in found[name]] == [1, 2, 3, 4, 5], name
        assert [value for _, value in found[name]] == pytest.approx([line[key] for line in lines])
    # A cosine after a tenth of the steps: the last step of the 72 is 0.05 · (1 + cos(64/65 π)) / 2.
    assert lines[1]["lr"] == pytest.approx(2.92e-5, rel=0.01)
    # The log of a complete run can be written later.
    for file in folder.iterdir():
        file.unlink()
    assert prunus(*command, "--resume").code == 0
    assert logged(folder) == found


def test_missing_extra_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for command in ("run", "compare"):
        outcome = prunus(command, "digits", "--log", "tensorboard", "--out", tmp_path / "out")
        outcome.refused("--log tensorboard needs the extra 'tensorboard'", "prunus[tensorboard]")
    assert not (tmp_path / "out").exists()


def test_older_histories_have_no_learning_rate(tmp_path: Path) -> None:
    line = {name: value for name, value in epoch("dense", 1).items() if name != "lr"}
    directory = RunDirectory(sample_run(tmp_path / "run", history=[json.loads(json.dumps(line))]))
    log = TensorBoardLog(directory)
    log.write_history_once("accuracy")
    log.close()
    assert set(logged(log.folder)) == {
        *("validation/accuracy", "loss/training", "loss/validation", "sparsity"),
    }
