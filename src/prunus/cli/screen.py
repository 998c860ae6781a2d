"""The screen: a console whose write errors are user errors."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from prunus.errors import PrunusError

__all__ = ["Screen", "discard_output"]


_WIDEST = 100_000
"""The most columns of a table that is not broken."""


class Screen(Console):
    """A console that raises :class:`~prunus.PrunusError` where the output cannot be written.

    This happens to a log on a full disk.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects, as :meth:`rich.console.Console.print` does."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            discard_output(sys.stdout)
            raise PrunusError(
                f"cannot write to the standard output: {error.strerror or error}. Files written "
                "before are untouched; make room or redirect the output, and resume a run with "
                "--resume"
            ) from error

    def print_unbroken(self, table: Table) -> None:
        """Print a table in its full width, so that no name is broken: as a pipe may search it."""
        wide = self.options.update(max_width=_WIDEST)
        width, self.width = self.width, Measurement.get(self, wide, table).maximum
        try:
            self.print(table)
        finally:
            self.width = width

    def message(self, text: str) -> None:
        """Print a line of plain text, without markup."""
        self.print(text, highlight=False, markup=False, soft_wrap=True)


def discard_output(stream: TextIO) -> None:
    """Discard the buffer of a stream, whose flush would fail again when Python exits."""
    with contextlib.suppress(OSError):  # the stream may have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
