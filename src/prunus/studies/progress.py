"""The progress interface of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prunus.studies.cells import Cell

__all__ = ["Failure", "StudyProgress", "StudyStatus"]


@dataclass(frozen=True)
class StudyStatus:
    """How far a study is.

    Attributes:
        finished: The number of finished runs, earlier ones included.
        running: The number of runs that are running.
        failed: The number of runs that failed.
        total: The number of planned runs.
        fraction: The fraction of all epochs that are done, from 0 to 1.
        seconds_left: The estimated time left; None before the first epoch.
    """

    finished: int
    running: int
    failed: int
    total: int
    fraction: float
    seconds_left: float | None

    @property
    def left(self) -> int:
        """The number of runs that are not started yet."""
        return self.total - self.finished - self.running - self.failed


@dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
        cell: The run.
        exit_code: Its exit code; negative for a signal, None if it did not start.
        reason: The last line of its error output, or why it was not accepted.
    """

    cell: Cell
    exit_code: int | None
    reason: str

    def __str__(self) -> str:
        ended = "" if self.exit_code is None else f" ended with {self.exit_code}"
        return f"{self.cell}{ended}: {self.reason or 'without a message'}"


class StudyProgress(Protocol):
    """Receives progress callbacks."""

    def status(self, status: StudyStatus) -> None:
        """Receive how far the study is, several times a second."""
        ...

    def finished(self, cell: Cell, summary: Mapping[str, Any], status: StudyStatus) -> None:
        """Receive the end of a run."""
        ...

    def failed(self, failure: Failure) -> None:
        """Receive the failure of a run."""
        ...
