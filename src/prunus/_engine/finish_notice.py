"""The notice that a training ended without ``finish()``."""

from __future__ import annotations

import logging
import sys
import weakref

__all__ = ["FinishNotice"]

_LOG = logging.getLogger("prunus")


class FinishNotice:
    """Logs a warning if its owner is deleted, or the program ends, before the notice is withdrawn.

    It is logged, and not a warning of Python's, because nothing can catch an error at that time.
    It is not logged if the program ends by an exception.

    Args:
        owner: The object whose end is awaited.
    """

    def __init__(self, owner: object) -> None:
        self._message: str | None = None
        weakref.finalize(owner, self._log)

    def post(self, message: str) -> None:
        """Log this message at the end, in place of any earlier one."""
        self._message = message

    def withdraw(self) -> None:
        """Log nothing at the end."""
        self._message = None

    def _log(self) -> None:
        failed = sys.exc_info()[0] is not None or getattr(sys, "last_value", None) is not None
        if self._message is not None and not failed:
            _LOG.warning(self._message)
