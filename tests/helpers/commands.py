"""Running the command within the test's own process, and reading what a run left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from prunus.cli.app import main

# Seconds instead of minutes: 36 steps an epoch, 50,610 parameters.
SHORT = ("--set", "dense_epochs=2", "--set", "epochs=3")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """Assert that a user's mistake ended the command with one message, without a traceback."""
        assert self.code == 2, self
        assert self.err.startswith("error: "), self
        assert "Traceback" not in self.out + self.err
        assert self.err.count("error: ") == 1, "one message"
        for part in parts:
            assert part in self.err, f"{part!r} is not in {self.err!r}"


def prunus(*arguments: str | Path | int) -> Outcome:
    """Run ``prunus`` with these arguments; anything but an exit is passed on, as a traceback is."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    plain = {"COLUMNS": "200", "NO_COLOR": "1"}
    with (
        mock.patch.object(sys, "argv", ["prunus", *map(str, arguments)]),
        mock.patch.dict(os.environ, plain),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.environ.pop("FORCE_COLOR", None)
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Outcome(code, _plain(out.getvalue()), _plain(err.getvalue()))


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def settings(**values: object) -> list[str]:
    """Return ``--set`` options."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def summary(path: Path) -> dict[str, Any]:
    """Read the summary of a run."""
    content: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return content


def metrics(path: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def contents(path: Path) -> dict[str, bytes | None]:
    """Return every file below ``path`` with its bytes, and every directory."""
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in sorted(path.rglob("*"))
    }


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """Mount a small file system of its own at ``path``, or skip the test where one may not."""
    path.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
