"""The executor of a job queue, on submitit's local one, which starts processes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from prunus.errors import ArgumentError, MissingExtraError, PrunusError
from prunus.studies import load_study
from prunus.studies.executors import Job
from prunus.studies.plan import plan_study
from prunus.studies.queued_executor import QueuedExecutor, slurm_executor
from prunus.studies.runner import StudyRunner
from studies.stubs import Recorder, directory, request


def queue(tmp_path: Path) -> QueuedExecutor:
    submitit = pytest.importorskip("submitit", reason="the extra slurm is not installed")
    return QueuedExecutor(submitit.LocalExecutor(tmp_path / "jobs"), jobs=2, threads=3)


def ended(job: Job) -> Job:
    end = time.monotonic() + 60
    while not job.done():
        assert time.monotonic() < end
        time.sleep(0.05)
    return job


@pytest.mark.frameworks
def test_job_runs_the_command_with_its_threads_and_logs(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit('error: no data')"
    job = ended(queue(tmp_path).start([sys.executable, "-c", code], tmp_path / "logs" / "a"))
    assert (job.exit_code(), job.error()) == (1, "no data")
    assert (tmp_path / "logs" / "a.out").read_text() == "3\n"


@pytest.mark.frameworks
def test_job_that_cannot_run_is_reported(tmp_path: Path) -> None:
    job = ended(queue(tmp_path).start([str(tmp_path / "absent")], tmp_path / "a"))
    assert job.exit_code() is None
    assert "No such file or directory" in job.error()


@pytest.mark.frameworks
def test_stopped_job_asks_its_command_to_save(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved'))); "
        "print('begun', flush=True); time.sleep(60)"
    )
    job = queue(tmp_path).start([sys.executable, "-c", code], tmp_path / "a")
    out, end = tmp_path / "a.out", time.monotonic() + 60
    while not (out.exists() and "begun" in out.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    job.stop()
    ended(job)
    while "saved" not in out.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.frameworks
def test_queue_without_slurm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason="the extra slurm is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrunusError, match='there is no Slurm here: Could not detect "srun"'):
        slurm_executor(tmp_path, {}, jobs=1, threads=1)
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda _: 2)
    executor = slurm_executor(tmp_path, {"partition": "gpu", "time": "90"}, jobs=4, threads=2)
    assert executor.jobs == 4
    chosen = {"partition": "gpu", "time": 90, "cpus_per_task": 2, "job_name": "prunus"}
    assert chosen.items() <= executor._queue.parameters.items()
    with pytest.raises(ArgumentError, match=r"--executor-option cannot be used: .*\['partion'\]"):
        slurm_executor(tmp_path, {"partion": "gpu"}, jobs=1, threads=1)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"executor slurm needs the extra 'slurm': pip ins"):
        slurm_executor(tmp_path, {}, jobs=1, threads=1)


@pytest.mark.frameworks
def test_study_runs_in_a_queue(tmp_path: Path) -> None:
    tiny = ["dense_epochs=1", "epochs=1", "schedule=gradual", "floor=none"]
    study = plan_study(request(changes=tiny, ratios=[5], seeds=[0]))
    files, recorder = directory(tmp_path), Recorder()
    with files.claimed():
        runner = StudyRunner(study, files, queue(tmp_path), recorder)
        runner.run()
    assert runner.failures == []
    assert load_study(files.path).missed_ratios == {}
    assert [cell.method for cell in recorder.cells] == ["prunus", "magnitude"]
    printed = Path(f"{files.log(study.cells[1])}.out").read_text()
    assert "the dense network is that of" in printed
