"""Durations as text."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["format_duration"]


def format_duration(seconds: float) -> str:
    """Return a duration as h:mm:ss.

    Example:
        >>> format_duration(3725.4)
        '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))
