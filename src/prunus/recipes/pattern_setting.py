"""The pattern of a recipe, by its setting."""

from __future__ import annotations

import re
from typing import Any

from prunus.errors import ArgumentError
from prunus.patterns import NM, Block, Channels, Columns, Pattern, Rows

__all__ = ["pattern_of", "pattern_setting_problem"]

_NAMED: dict[str, Pattern] = {"rows": Rows(), "columns": Columns(), "channels": Channels()}

_EXPECTED = "none, 2:4 (or other numbers n:m), 1x4 (or other sizes), rows, columns or channels"


def pattern_of(setting: str) -> Pattern:
    """Return the pattern that a setting names.

    Args:
        setting: The setting, such as "2:4", "1x4" or "rows".

    Raises:
        ArgumentError: It names none, or its numbers are out of range.

    Example:
        >>> pattern_of("2:4"), pattern_of("1x4")
        (NM(n=2, m=4, along='input'), Block(rows=1, columns=4))
    """
    if setting in _NAMED:
        return _NAMED[setting]
    found = re.fullmatch(r"(\d{1,9})([:x])(\d{1,9})", setting)
    if found is None:
        raise ArgumentError(f"pattern must be {_EXPECTED}, but is {setting!r}")
    first, last = int(found[1]), int(found[3])
    try:
        return NM(first, last) if found[2] == ":" else Block(first, last)
    except ArgumentError as error:
        raise ArgumentError(f"pattern={setting}: {error}") from None


def pattern_setting_problem(name: str, value: Any) -> str | None:
    """Return what is wrong with the setting ``pattern``, or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        return f"{name} must be {_EXPECTED}, but is {value!r}"
    try:
        pattern_of(value)
    except ArgumentError as error:
        return str(error)
    return None
