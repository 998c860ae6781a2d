"""Dataclass fields that carry their own bounds and help text.

The bounds of a setting are written once, in its field. The checks of a constructor, the command's
``--set`` and the tables of settings all read them from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Protocol, cast

from prunus._utils.checks import choice_problem, method_problem, number_problem, raise_problems

__all__ = [
    "Check",
    "checked",
    "choice",
    "field_problems",
    "help_of",
    "methods",
    "number",
    "setting",
    "validate",
    "value_problems",
]


class Check(Protocol):
    """A check of one field's value."""

    def problem(self, name: str, value: Any) -> str | None:
        """Return what is wrong with the value, or None."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Number:
    whole: bool = False
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    optional: bool = False

    def problem(self, name: str, value: Any) -> str | None:
        bounds = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return number_problem(name, value, **bounds)


@dataclass(frozen=True)
class _Choice:
    choices: tuple[object, ...]
    expected: str = ""

    def problem(self, name: str, value: Any) -> str | None:
        return choice_problem(name, value, self.choices, self.expected)


@dataclass(frozen=True)
class _Methods:
    methods: tuple[str, ...]
    expected: str

    def problem(self, name: str, value: Any) -> str | None:
        return method_problem(name, value, self.methods, self.expected)


@dataclass(frozen=True)
class _Function:
    function: Callable[[str, Any], str | None]

    def problem(self, name: str, value: Any) -> str | None:
        return self.function(name, value)


def setting(default: Any = MISSING, *, help: str = "", check: Check | None = None) -> Any:
    """Return a dataclass field.

    Args:
        default: Its default; without one the field is required.
        help: What it means, for tables of settings.
        check: The check of its value, if it has one.
    """
    metadata: Mapping[str, object] = {"help": help, "check": check}
    return dataclasses.field(default=default, metadata=metadata)


def number(
    default: Any = MISSING,
    *,
    help: str = "",
    whole: bool = False,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    optional: bool = False,
) -> Any:
    """Return a dataclass field for a finite number within bounds.

    Args:
        default: Its default; without one the field is required.
        help: What it means, for tables of settings.
        whole: Whether the type must be an integer.
        above: Exclusive lower bound.
        least: Inclusive lower bound.
        below: Exclusive upper bound.
        most: Inclusive upper bound.
        optional: Whether None is accepted.

    Example:
        >>> @dataclass
        ... class Step:
        ...     every: int = number(100, whole=True, least=1)
        ...     def __post_init__(self) -> None:
        ...         validate(self)
        >>> Step(every=0)
        Traceback (most recent call last):
        prunus.errors.ArgumentError: every must be at least 1, but is 0
    """
    check = _Number(
        whole=whole, above=above, least=least, below=below, most=most, optional=optional
    )
    return setting(default, help=help, check=check)


def choice(
    default: Any = MISSING,
    choices: Sequence[object] = (),
    *,
    help: str = "",
    expected: str = "",
) -> Any:
    """Return a dataclass field for one of a few values.

    Args:
        default: Its default; without one the field is required.
        choices: The values.
        help: What it means, for tables of settings.
        expected: What messages call the values. Default: their names.
    """
    return setting(default, help=help, check=_Choice(tuple(choices), expected))


def methods(
    default: Any = MISSING,
    *methods: str,
    expected: str,
    help: str = "",
) -> Any:
    """Return a dataclass field for an object with these methods.

    Args:
        default: Its default; without one the field is required.
        *methods: The methods it must have.
        expected: What messages call such an object, with an article.
        help: What it means, for tables of settings.
    """
    return setting(default, help=help, check=_Methods(methods, expected))


def checked(
    default: Any = MISSING,
    *,
    by: Callable[[str, Any], str | None],
    help: str = "",
) -> Any:
    """Return a dataclass field that a function checks.

    Args:
        default: Its default; without one the field is required.
        by: Returns what is wrong with a value, given the field's name and the value, or None.
        help: What it means, for tables of settings.
    """
    return setting(default, help=help, check=_Function(by))


def help_of(field: dataclasses.Field[Any]) -> str:
    """Return the help text of a field, or an empty one."""
    return str(field.metadata.get("help", ""))


def value_problems(cls: type[Any], values: Mapping[str, Any]) -> Iterator[str | None]:
    """Yield what is wrong with values for the fields of a dataclass, without building one.

    Args:
        cls: The dataclass.
        values: Values by field name; fields without a value are not checked.

    Example:
        >>> @dataclass
        ... class Step:
        ...     every: int = number(100, whole=True, least=1)
        >>> list(value_problems(Step, {"every": 0}))
        ['every must be at least 1, but is 0']
    """
    for field in dataclasses.fields(cls):
        check = cast("Check | None", field.metadata.get("check"))
        if check is not None and field.name in values:
            yield check.problem(field.name, values[field.name])


def field_problems(instance: Any) -> Iterator[str | None]:
    """Yield what is wrong with each field of a dataclass instance that carries a check."""
    fields = dataclasses.fields(instance)
    return value_problems(type(instance), {f.name: getattr(instance, f.name) for f in fields})


def validate(instance: Any, *problems: str | None) -> None:
    """Check a dataclass instance; for ``__post_init__``.

    Args:
        instance: The instance.
        *problems: What else is wrong with it, as the functions of
            :mod:`prunus._utils.checks` return it.

    Raises:
        ArgumentError: A value is out of bounds; every one is listed.
        ArgumentTypeError: Every problem is one of type.
    """
    raise_problems(*field_problems(instance), *problems)
