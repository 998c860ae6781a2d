"""Executors: where the runs of a study are started."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prunus._utils.files import report_write_errors

__all__ = ["Executor", "Job", "LocalExecutor", "last_line", "run_process", "thread_settings"]


class Job(Protocol):
    """A run that was started."""

    def done(self) -> bool:
        """Return whether it has ended, in whatever way."""
        ...

    def exit_code(self) -> int | None:
        """Return the exit code after the end; None if the job did not get as far as that."""
        ...

    def error(self) -> str:
        """Return the last line of its error output, or what kept it from running."""
        ...

    def stop(self) -> None:
        """Ask it to save its state and end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Executor(Protocol):
    """The place where runs are started.

    Attributes:
        jobs: The largest number of runs at a time.
    """

    jobs: int

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start a run.

        Args:
            command: The command and its arguments.
            log: The path of its output without the suffixes .out and .err; both are appended to.
        """
        ...


def thread_settings(threads: int) -> dict[str, str]:
    """Return the environment variables that limit the threads of a process."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


@dataclass
class LocalExecutor:
    """An executor that starts processes on this machine.

    Args:
        jobs: The largest number of runs at a time.
        threads: The number of threads of each.
    """

    jobs: int = 1
    threads: int = 1

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start a process, in the process group of this one."""
        return _Process(start_process(command, self.threads, log), log)


class _Process:
    """A process on this machine."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def done(self) -> bool:
        return self._process.poll() is not None

    def exit_code(self) -> int | None:
        return self._process.poll()

    def error(self) -> str:
        return last_line(self._log)

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def start_process(command: Sequence[str], threads: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a command whose output is appended to its logs.

    Args:
        command: The command and its arguments.
        threads: The number of threads of the process.
        log: The path of the logs without their suffixes.

    Raises:
        PrunusError: The logs cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with report_write_errors(log.parent):
            log.parent.mkdir(parents=True, exist_ok=True)
            out, err = (
                stack.enter_context(Path(f"{log}{suffix}").open("ab"))
                for suffix in (".out", ".err")
            )
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **thread_settings(threads)},
        )


def run_process(command: Sequence[str], threads: int, log: str) -> int:
    """Run a command until its end, and return its exit code; the work of a queued job.

    A job that is cancelled asks the command to save its state first.

    Args:
        command: The command and its arguments.
        threads: The number of threads of the process.
        log: The path of the logs without their suffixes.
    """
    process = start_process(command, threads, Path(log))
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def last_line(log: Path) -> str:
    """Return the last line of a log's errors that is not blank; "" if there is none."""
    try:
        text = Path(f"{log}.err").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""
