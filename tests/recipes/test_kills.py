"""Interrupted runs: kills at calls that change files, a full disk, a damaged checkpoint.

Those of ``test_resume`` raise an exception within the process, which then still cleans up; here the
process is killed, and a file may be half written.
"""

from __future__ import annotations

import random

import pytest

from benchmarks.robustness.interruption.calls import Disturbance
from benchmarks.robustness.interruption.kinds import at_a_call, damaged, full_disk
from benchmarks.robustness.interruption.runs import Runner, Trial, differences

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("COLUMNS", "200")
        patch.setenv("NO_COLOR", "1")
        return Runner(tmp_path_factory.mktemp("kills"))


def survives(trial: Trial) -> bool:
    """Return whether the run was disturbed, lost nothing, and ended with the same bits."""
    return bool(trial.hits) and not trial.lost and not trial.unequal


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_run_killed_at_a_call_ends_with_the_same_bits(runner: Runner, fraction: float) -> None:
    trial = at_a_call(runner, random.Random(1), round(fraction * runner.calls))
    assert survives(trial), trial


@pytest.mark.parametrize("fraction", [0.01, 0.4])
def test_run_on_a_full_disk_reports_it_and_loses_nothing(runner: Runner, fraction: float) -> None:
    trial = full_disk(runner, random.Random(1), max(1, round(fraction * runner.calls)))
    assert survives(trial), trial


def test_damaged_checkpoint_is_replaced_by_the_previous_one(runner: Runner) -> None:
    trial = damaged(runner, random.Random(1), 0)
    assert survives(trial), trial


def test_lost_progress_and_unequal_files_are_reported(runner: Runner) -> None:
    trial = runner.trial()
    runner.watched(trial, Disturbance("kill", runner.calls // 2))
    trial.inspect()
    assert trial.saved > (0, 0)
    trial.last.write_bytes(trial.previous.read_bytes())
    trial.inspect()
    assert "was saved, " in trial.lost[0]
    runner.finish(trial)
    assert not trial.unequal
    (trial.out / "stray").touch()
    metrics = trial.out / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss"', '"lost"', 1))
    found = differences(trial.out, runner.undisturbed)
    assert found == ["only one run has stray", "metrics.jsonl differs"]
