"""The progress of a study on the terminal: a live bar, or a few plain lines into a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from prunus._utils.digits import format_metric
from prunus._utils.durations import format_duration
from prunus.cli.screen import Screen
from prunus.studies.cells import Cell
from prunus.studies.progress import Failure, StudyStatus

__all__ = ["TerminalStudyProgress"]

_LINES = 20
"""The number of lines about finished runs that are written into a pipe, about."""


class TerminalStudyProgress:
    """Shows how many runs are finished, running and left, and the time left."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0

    def status(self, status: StudyStatus) -> None:
        """Update the bar."""
        if not self._screen.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%  {task.description}"),
                console=self._screen,
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=status.fraction, description=describe(status))

    def finished(self, cell: Cell, summary: Mapping[str, Any], status: StudyStatus) -> None:
        """Print a line about a finished run; in a pipe only about every so many."""
        every = 1 if self._screen.is_terminal else max(1, status.total // _LINES)
        if status.finished - self._shown < every and status.finished < status.total:
            return
        self._shown = status.finished
        metric = f"test {summary['metric']['name']} {format_metric(summary['sparse']['test'])}"
        line = f"{cell}: {metric}, sparsity {summary['sparsity']:.4f}"
        self._screen.message(line if self._screen.is_terminal else f"{line}; {describe(status)}")

    def failed(self, failure: Failure) -> None:
        """Print a line about a failed run."""
        self._screen.message(f"failed: {failure}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(status: StudyStatus) -> str:
    """Return the numbers of runs and the time left in words.

    Example:
        >>> describe(StudyStatus(5, 2, 0, 24, 0.25, 151.0))
        '5 finished, 2 running, 17 left, 0:02:31'
    """
    parts = [f"{status.finished} finished", f"{status.running} running", f"{status.left} left"]
    parts += [f"{status.failed} failed"] if status.failed else []
    if status.seconds_left is not None and status.finished < status.total:
        parts.append(format_duration(status.seconds_left))
    return ", ".join(parts)
