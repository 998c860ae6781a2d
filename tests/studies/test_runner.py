"""The runner: order, resumption, failures and stops, with stand-ins for the runs."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from prunus.errors import CheckpointError, PrunusError
from prunus.studies import Cell, Study, load_study
from prunus.studies.plan import plan_study
from prunus.studies.runner import Stopped, StudyRunner
from studies.stubs import DENSE, Recorder, StubExecutor, directory, names, option, request, summary


def planned(**values: object) -> Study:
    chosen = {"methods": ["prunus", "magnitude"], "ratios": [25, 60], "seeds": [0, 1]}
    return plan_study(request(**{**chosen, **values}))


def run(path: Path, executor: StubExecutor, study: Study | None = None) -> StudyRunner:
    """Run a study to its end, or what an earlier call left."""
    files = directory(path)
    runner = StudyRunner(
        study or files.read() or planned(), files, executor, Recorder(), interval=0.0
    )
    with files.claimed():
        runner.run()
    return runner


def timeless(study: Study) -> object:
    return [(run.cell, run.command, run.summary) for run in study.runs]


def test_every_run_is_started_once_and_recorded(tmp_path: Path) -> None:
    executor = StubExecutor()
    runner = run(tmp_path, executor)
    assert runner.failures == []
    assert names(executor) == [
        *("seed0-prunus-25", "seed0-magnitude-25", "seed0-prunus-60", "seed0-magnitude-60"),
        *("seed1-prunus-25", "seed1-magnitude-25", "seed1-prunus-60", "seed1-magnitude-60"),
    ]
    assert executor.most == 1
    study = load_study(tmp_path / "study")
    assert study == runner.study
    assert not study.unfinished
    assert study.outcomes()[25.0, "prunus"].values == (DENSE[0] - 0.01, DENSE[1] - 0.01)


def test_runs_of_a_seed_wait_for_its_dense_network_and_share_it(tmp_path: Path) -> None:
    executor = StubExecutor(jobs=3)
    run(tmp_path, executor)
    # One of each seed first; then those whose dense network exists.
    assert names(executor)[:2] == ["seed0-prunus-25", "seed1-prunus-25"]
    assert executor.most == 3
    for job in executor.started:
        first = job.out.name in ("seed0-prunus-25", "seed1-prunus-25")
        assert ("--dense" in job.arguments) != first
        if not first:
            seed = option(job.arguments, "--seed")
            donor = Path(option(job.arguments, "--dense"))
            assert donor == (tmp_path / "study" / "runs" / f"seed{seed}-prunus-25").resolve()


def test_finished_study_starts_nothing(tmp_path: Path) -> None:
    run(tmp_path, StubExecutor())
    before = (tmp_path / "study" / "study.json").read_bytes()
    executor = StubExecutor()
    run(tmp_path, executor)
    assert executor.started == []
    assert (tmp_path / "study" / "study.json").read_bytes() == before


def test_interrupted_run_resumes_and_finished_ones_are_not_repeated(tmp_path: Path) -> None:
    executor = StubExecutor(jobs=2)
    looks = 0

    def stop() -> bool:
        nonlocal looks
        looks += 1
        return looks == 7

    files, study = directory(tmp_path), planned()
    runner = StudyRunner(study, files, executor, Recorder(), stop=stop, interval=0.0)
    with files.claimed(), pytest.raises(Stopped):
        runner.run()
    assert all(job.code is not None for job in executor.started)
    done = {job.out.name for job in executor.started if job.code == 0}
    interrupted = {job.out.name for job in executor.started if job.code == 143}
    assert done
    assert interrupted
    recorded = files.read()
    assert recorded is not None
    assert len(recorded.finished) == len(done)

    again = StubExecutor(jobs=2)
    ended = run(tmp_path, again)
    assert not done & set(names(again))
    assert {job.out.name for job in again.started if "--resume" in job.arguments} == interrupted
    # A run resumes with the data and the dense network that it began with.
    assert not any("--dense" in j.arguments for j in again.started if "--resume" in j.arguments)
    (tmp_path / "whole").mkdir()
    assert timeless(ended.study) == timeless(run(tmp_path / "whole", StubExecutor()).study)


def test_summary_that_is_not_recorded_yet_is_found(tmp_path: Path) -> None:
    """The process was killed between the end of a run and its record."""
    study = run(tmp_path, StubExecutor()).study
    file = tmp_path / "study" / "study.json"
    content = json.loads(file.read_text())
    content["runs"][2].update(summary=None, date=None)
    file.write_text(json.dumps(content))
    executor = StubExecutor()
    assert timeless(run(tmp_path, executor).study) == timeless(study)
    assert executor.started == []


def test_run_of_another_process_is_awaited(tmp_path: Path) -> None:
    """Only the command was killed, and a run that it started continues."""
    study = planned(methods=["prunus"])
    files, executor = directory(tmp_path), StubExecutor(jobs=4)
    running = files.run(study.cells[0])
    running.checkpoints.folder.mkdir(parents=True)
    arguments = ["run", "digits", "--seed", "0", "--method", "prunus", "--set", "ratio=25"]
    running.write_config(executor.identity(arguments))
    lock = (running.path / ".lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    looks = 0

    def end_after_some_looks() -> bool:
        nonlocal looks
        looks += 1
        if looks == 5:
            # The other run of seed 0 waits for its dense network.
            assert names(executor) == ["seed1-prunus-25", "seed1-prunus-60"]
            running.dense_file.touch()
            running.write_summary(summary(0, 0.9, 25.0))
            lock.close()
        return False

    with files.claimed():
        runner = StudyRunner(
            study, files, executor, Recorder(), stop=end_after_some_looks, interval=0.0
        )
        runner.run()
    assert names(executor) == ["seed1-prunus-25", "seed1-prunus-60", "seed0-prunus-60"]
    assert not runner.study.unfinished


def test_failure_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    executor = StubExecutor(failing=lambda out: "magnitude-25" in out.name)
    runner = run(tmp_path, executor)
    assert [str(failure) for failure in runner.failures] == [
        f"magnitude, ratio 25, seed {seed} ended with 2: a message" for seed in (0, 1)
    ]
    assert len(executor.started) == 8
    assert runner.study.unfinished == (Cell("magnitude", 25.0, 0), Cell("magnitude", 25.0, 1))
    again = StubExecutor()
    assert not run(tmp_path, again).study.unfinished
    assert names(again) == ["seed0-magnitude-25", "seed1-magnitude-25"]


def test_first_run_of_a_seed_that_fails_is_replaced_by_the_next(tmp_path: Path) -> None:
    executor = StubExecutor(failing=lambda out: "prunus-25" in out.name)
    runner = run(tmp_path, executor)
    assert len(runner.failures) == 2
    assert len(runner.study.finished) == 6


def test_other_dense_network_is_a_failure(tmp_path: Path) -> None:
    run(tmp_path, StubExecutor(), planned(seeds=[0], ratios=[25], methods=["prunus"]))
    files = directory(tmp_path)
    study = plan_study(request(methods=["magnitude"]), files.read())
    run_directory = files.run(Cell("magnitude", 25.0, 0))
    run_directory.checkpoints.folder.mkdir(parents=True)
    run_directory.write_summary(summary(0, 0.9, 25.0, dense=0.5))
    runner = run(tmp_path, StubExecutor(), study)
    (failure,) = runner.failures
    assert "its dense network is not that of the seed's other runs" in failure.reason


def test_run_with_other_settings_is_rejected_before_any_starts(tmp_path: Path) -> None:
    files, executor = directory(tmp_path), StubExecutor()
    cell = Cell("magnitude", 60.0, 1)
    files.run(cell).checkpoints.folder.mkdir(parents=True)
    arguments = ["run", "digits", "--seed", "1", "--method", "l2", "--set", "ratio=60"]
    files.run(cell).write_config(executor.identity(arguments))
    with pytest.raises(CheckpointError, match=r"seed1-magnitude-60 holds another run: penalty was"):
        StudyRunner(planned(), files, executor, Recorder(), interval=0.0).run()
    assert executor.started == []


def test_study_in_use_is_rejected(tmp_path: Path) -> None:
    files = directory(tmp_path)
    with (
        files.claimed(),
        pytest.raises(PrunusError, match="is in use by another prunus compare"),
        files.claimed(),
    ):
        pass


def test_status_counts_runs_and_estimates_the_time(tmp_path: Path) -> None:
    files, recorder = directory(tmp_path), Recorder()
    with files.claimed():
        StudyRunner(planned(), files, StubExecutor(jobs=2), recorder, interval=0.0).run()
    assert recorder.statuses[0].seconds_left is None
    last = recorder.statuses[-1]
    assert (last.finished, last.running, last.left, last.fraction) == (8, 0, 0, 1.0)
    fractions = [status.fraction for status in recorder.statuses]
    assert fractions == sorted(fractions)
    # Each of two seeds trains a dense network for 40 epochs, and each of eight runs 100.
    assert 100 / 880 in fractions or 140 / 880 in fractions
    for status in recorder.statuses:
        assert status.finished + status.running + status.left == 8
