"""The values of settings: their text form on the command line, and their types."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Union

__all__ = ["SettingRow", "describe_choices", "describe_type", "fits_type", "parse_value"]

_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class SettingRow(NamedTuple):
    """One row of the table of a recipe's settings.

    Attributes:
        name: The name of the setting.
        value: Its value as text.
        accepts: The values that it accepts.
        help: What it does.
    """

    name: str
    value: str
    accepts: str
    help: str


def parse_value(text: str, hint: Any) -> Any:
    """Return ``text`` as a value of the first type in ``hint`` that it can be read as.

    Args:
        text: The text after ``key=``.
        hint: A type, a ``Literal`` of texts, or a union of these and None.

    Raises:
        ValueError: The text cannot be read as any of these types.

    Example:
        >>> parse_value("0.5", float | None), parse_value("None", float | None)
        (0.5, None)
    """
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            if text in typing.get_args(option):
                return text
        elif option is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif option is type(None):
            if text.lower() == "none":
                return None
        elif option is str:
            if text.lower() != "none":
                return text
        else:
            try:
                return option(text)
            except ValueError:
                continue
    raise ValueError(text)


def fits_type(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type in ``hint``.

    Example:
        >>> fits_type(1, float), fits_type(True, int), fits_type("max", Literal["max", "min"])
        (True, False, True)
    """
    return any(
        type(value) is str and value in typing.get_args(option)
        if typing.get_origin(option) is Literal
        # A float without a fraction may be written as an integer; and bool is an int to Python.
        else type(value) in ((int, float) if option is float else (option,))
        for option in _options(hint)
    )


def describe_type(hint: Any) -> str:
    """Return a description of the values that ``hint`` allows.

    Example:
        >>> describe_type(float | None), describe_type(Literal["dense", "random"])
        ('a number or none', 'dense or random')
    """
    parts = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            parts += [str(value) for value in typing.get_args(option)]
        else:
            parts.append("none" if option is type(None) else _TYPE_NAMES[option])
    return describe_choices(parts)


def describe_choices(choices: Sequence[str]) -> str:
    """Return choices as a text.

    Example:
        >>> describe_choices(["a"]), describe_choices(["a", "b", "c"])
        ('a', 'a, b or c')
    """
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)
