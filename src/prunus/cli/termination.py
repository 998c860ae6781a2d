"""Requests to terminate: a signal that lets the command save its state before it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["termination"]


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM was received; a second one kills at once."""
    received = threading.Event()

    def handle(*_: object) -> None:
        received.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
