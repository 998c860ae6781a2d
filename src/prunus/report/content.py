"""The parts that sections of a page consist of: tables, key figures, and values of settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KeyFigure", "Table", "setting_text"]


@dataclass(frozen=True)
class KeyFigure:
    """A number that summarizes the run.

    Attributes:
        name: Its name.
        value: The number as text.
        detail: What it is compared with.
    """

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: The headings.
        rows: The cells of each row, the first of which is its name.
        note: A line below it.
        numeric: Whether the cells after the first are numbers, to be aligned at the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric: bool = True


def setting_text(value: object) -> str:
    """Return the value of a setting as ``--set`` reads it.

    Example:
        >>> setting_text(None), setting_text(True), setting_text(0.5)
        ('none', 'true', '0.5')
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)
