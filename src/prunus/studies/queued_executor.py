"""An executor that submits the runs of a study to a job queue through submitit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus._utils.extras import missing_extra
from prunus.errors import ArgumentError, PrunusError, first_line, root_cause
from prunus.studies.executors import last_line, run_process

__all__ = ["QueuedExecutor", "slurm_executor"]


class QueuedExecutor:
    """An executor on top of one of submitit's.

    The directory of the study has to be on a file system that all nodes share.

    Args:
        queue: The executor of submitit, with its options set.
        jobs: The largest number of runs that are submitted at a time.
        threads: The number of threads of each.
    """

    def __init__(self, queue: Any, *, jobs: int, threads: int) -> None:
        self._queue, self.jobs, self._threads = queue, jobs, threads

    def start(self, command: Sequence[str], log: Path) -> _QueuedJob:
        """Submit a job.

        Raises:
            PrunusError: The queue rejects it.
        """
        try:
            job = self._queue.submit(run_process, list(command), self._threads, str(log.resolve()))
        except Exception as error:  # submitit raises errors of its own, of the system and others
            reason = first_line(root_cause(error)) or type(error).__name__
            raise PrunusError(
                f"the queue rejects a job: {reason}. Check --executor-option, and continue with "
                "the same command"
            ) from error
        return _QueuedJob(job, log)


class _QueuedJob:
    """A job of submitit."""

    def __init__(self, job: Any, log: Path) -> None:
        self._job, self._log = job, log

    def done(self) -> bool:
        return bool(self._job.done())

    def exit_code(self) -> int | None:
        try:
            return int(self._job.result())
        except Exception:  # whatever kept the job from returning a result, which error() reports
            return None

    def error(self) -> str:
        if self.exit_code() is not None:
            return last_line(self._log)
        lines = str(self._job.exception()).splitlines()
        # The error is the last line of a traceback, which submitit puts between other lines.
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
        return [*lines[:1], *errors][-1] if lines else "the job ended without a result"

    def stop(self) -> None:
        self._job.cancel()

    def kill(self) -> None:
        self._job.cancel()


def slurm_executor(
    folder: Path, options: Mapping[str, str], *, jobs: int, threads: int
) -> QueuedExecutor:
    """Return an executor that submits to Slurm.

    Args:
        folder: The folder of submitit's files, on a file system that all nodes share.
        options: Options of submitit's ``SlurmExecutor`` by name, such as ``partition`` or ``time``
            in minutes. Default of ``cpus_per_task``: ``threads``.
        jobs: The largest number of runs that are submitted at a time.
        threads: The number of threads of each.

    Raises:
        MissingExtraError: submitit is not installed.
        ArgumentError: Options are unknown.
        PrunusError: There is no Slurm here.
    """
    try:
        import submitit
    except ImportError as error:
        raise missing_extra("the executor slurm", "slurm", error) from error
    try:
        queue = submitit.SlurmExecutor(folder)
    except RuntimeError as error:
        raise PrunusError(
            f"there is no Slurm here: {first_line(error)} Run on a login node of the cluster, or "
            "leave out --executor"
        ) from error
    values = {name: int(value) if value.isdigit() else value for name, value in options.items()}
    try:
        queue.update_parameters(**{"job_name": "prunus", "cpus_per_task": threads, **values})
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"--executor-option cannot be used: {first_line(error)}") from error
    return QueuedExecutor(queue, jobs=jobs, threads=threads)
