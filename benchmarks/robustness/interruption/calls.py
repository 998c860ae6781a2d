"""Disturbance of the command at the n-th call that changes its run's directory.

The process is killed there, or the disk is full from there on. It is killed by SIGKILL just before
the call; a write is done in part first, so that the file is torn. Python's audit events report the
calls; for writes and fsync, which have none, ``io.open`` and ``os.fsync`` are replaced.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunus.cli.app import main

__all__ = ["Disturbance", "disturbed"]

# For each event: its name here, and the position of the argument that is the changed path.
EVENTS = {
    "open": ("open", 0),
    "os.mkdir": ("mkdir", 0),
    "os.rmdir": ("rmdir", 0),
    "os.remove": ("remove", 0),
    "os.rename": ("rename", 1),
    "os.link": ("link", 1),
}
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ASIDE = re.compile(r"\.([^/]+)\.[0-9a-f]{8}$")  # name of a file being written


@dataclass(frozen=True)
class Disturbance:
    """Kind and moment of a disturbance.

    Attributes:
        action: "kill", or "full" for a disk that is full from then on.
        at: The number of the call, counted from 1; 0 for never.
        fraction: Fraction of that call that is done if it is a write, from 0 to 1.
    """

    action: Literal["kill", "full"] = "kill"
    at: int = 0
    fraction: float = 0.5


class _Watch:
    """Counts the calls that change files below a directory, and disturbs one of them."""

    def __init__(self, below: Path, disturbance: Disturbance) -> None:
        self.calls = 0
        self.where = ""
        self._below, self._disturbance = str(below), disturbance
        self._written = ""
        self._true_open, self._true_fsync = io.open, os.fsync

    def begin(self, report: Path) -> None:
        """Watch all calls until the process ends."""
        self._report = report
        sys.addaudithook(self._audited)
        io.open = self._open
        os.fsync = self._fsync  # type: ignore[assignment]

    def report(self) -> None:
        """Write the number of calls, and which of them was disturbed."""
        descriptor = os.open(self._report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, json.dumps({"calls": self.calls, "where": self.where}).encode())
        os.close(descriptor)

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        call, number = EVENTS[event]
        path = arguments[number]
        if not self._concerns(path):
            return
        if call == "open" and not arguments[2] & CHANGING:
            return
        grows = call in ("mkdir", "link", "rename") or (call == "open" and not os.path.exists(path))
        if self._strikes(call, path, needs_room=grows):
            self._strike()

    def _concerns(self, path: Any) -> bool:
        name = str(path)
        return name == self._below or name.startswith(self._below + os.sep)

    def _open(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode).isdisjoint("wax") or not self._concerns(file):
            return self._true_open(file, mode, *rest, **named)
        binary = io.BufferedWriter(_Torn(self, file, mode.replace("b", "").replace("t", "")))
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding="utf-8")

    def _fsync(self, descriptor: Any) -> None:
        if self._strikes("fsync", self._written, needs_room=True):
            self._strike()
        self._true_fsync(descriptor)

    def write(self, file: _Torn, content: memoryview) -> None:
        """Count a write, and tear it if it is disturbed."""
        self._written = os.fspath(file.name)
        if self._strikes("write", self._written, needs_room=True):
            if self.calls == self._disturbance.at:  # later writes have no room at all
                file.complete(content[: int(len(content) * self._disturbance.fraction)])
            self._strike()

    def _strikes(self, call: str, path: str | os.PathLike[str], *, needs_room: bool) -> bool:
        self.calls += 1
        action, at = self._disturbance.action, self._disturbance.at
        strikes = self.calls == at if action == "kill" else needs_room and 0 < at <= self.calls
        if strikes and not self.where:
            shown = os.path.relpath(path, self._below)
            self.where = f"{call} " + ASIDE.sub(r"\1", shown)
        return strikes

    def _strike(self) -> None:
        self.report()
        if self._disturbance.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Torn(io.FileIO):
    """A file whose writes are watched."""

    def __init__(self, watch: _Watch, path: Any, mode: str) -> None:
        self._watch = watch
        super().__init__(path, mode)

    def write(self, content: Any, /) -> int:
        self._watch.write(self, memoryview(content))
        return super().write(content)

    def complete(self, content: memoryview) -> None:
        """Write without being watched."""
        while content:
            content = content[super().write(content) :]


def disturbed(
    command: Sequence[str], below: Path, disturbance: Disturbance, output: Path, report: Path
) -> None:
    """Run the command in this process, with its output in the file ``output``.

    Args:
        command: Its arguments.
        below: The run's directory.
        disturbance: Kind and moment of the disturbance.
        output: File for its output.
        report: File for the number of calls and the disturbed call, as JSON.
    """
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = ["prunus", *command]
    watch = _Watch(below, disturbance)
    watch.begin(report)
    try:
        main()
    finally:
        watch.report()
