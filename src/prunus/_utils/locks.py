"""Locks of directories, so that only one process writes to each."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from prunus._utils.files import report_write_errors
from prunus.errors import PrunusError

__all__ = ["is_locked", "locked"]


@contextlib.contextmanager
def locked(path: Path, in_use: str) -> Iterator[None]:
    """Hold the lock of a file, which the system releases when the process ends.

    Args:
        path: The file, which is created if it is missing.
        in_use: The message of the error if another process holds the lock.

    Raises:
        PrunusError: Another process holds the lock, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / ".lock"
        >>> with locked(path, "in use"):
        ...     is_locked(path)
        True
        >>> is_locked(path)
        False
    """
    with report_write_errors(path.parent):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PrunusError(in_use) from error
        yield


def is_locked(path: Path) -> bool:
    """Return whether a process, this one included, holds the lock of a file."""
    try:
        file = path.open()
    except OSError:  # there is no such file, or no such directory
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
