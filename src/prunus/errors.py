"""Errors that prunus raises, all of which derive from :class:`PrunusError`.

Every message reports what was expected, what came instead and how to fix it, and lists every
offender at once. Any other error that escapes is a defect of prunus. The exit code of the command
is 2 for user errors, and 1, with a traceback, for defects and for :class:`PeerError`, which another
process caused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "DataError",
    "FloorNotReachedError",
    "MissingExtraError",
    "NonFiniteError",
    "PeerError",
    "PrunusError",
    "RecipeError",
    "SparseFileError",
]


class PrunusError(Exception):
    """Base of all errors that prunus raises for a reason that its caller can fix."""


class ArgumentError(PrunusError, ValueError):
    """An argument or setting has a value that cannot be used."""


class ArgumentTypeError(PrunusError, TypeError):
    """An argument has a type that cannot be used."""


class CheckpointError(PrunusError, ValueError):
    """A checkpoint is damaged, altered, or belongs to another model or run."""


class DataError(PrunusError, ValueError):
    """A data set is absent, empty, truncated or has other columns than the recipe reads."""


class RecipeError(PrunusError, ValueError):
    """The Python file of a recipe cannot be used, or its code failed."""


class SparseFileError(PrunusError, ValueError):
    """A sparse file is damaged, malicious, or larger than the caller allows."""


class FloorNotReachedError(PrunusError):
    """No state of the model met the floor, so there is nothing to deliver."""


class MissingExtraError(PrunusError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class NonFiniteError(PrunusError, ValueError):
    """A loss, metric or score is NaN or infinite."""


class PeerError(PrunusError, RuntimeError):
    """Another process of the group ended, or did not make the same calls as this one."""


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that ``name`` is most likely a misspelling of, best first.

    Names that contain ``name`` count too, because a part of a dotted name is often written for it.

    Example:
        >>> nearest("fc9.weight", ["conv.weight", "fc1.weight", "fc2.weight"], most=2)
        ['fc2.weight', 'fc1.weight']
    """
    candidates = list(known)
    close = difflib.get_close_matches(name, candidates, n=most, cutoff=0.6)
    parts = [candidate for candidate in candidates if name and name in candidate]
    loose = difflib.get_close_matches(name, candidates, n=most, cutoff=0.4)
    return list(dict.fromkeys(close + parts + loose))[:most]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not among the known ones.

    Args:
        kind: What the names are of.
        name: The unknown name.
        known: The known names.

    Example:
        >>> unknown_name("recipe", "digit", ["digits", "wmt14"])
        "there is no recipe 'digit'. Did you mean digits? The recipes are digits, wmt14"
    """
    names = list(known)
    near = nearest(name, names)
    hint = f"Did you mean {near[0]}? " if near else ""
    if any("," in known_name for known_name in names):
        names = [repr(known_name) for known_name in names]
    return f"there is no {kind} {name!r}. {hint}The {kind}s are {listing(names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank; "" if there is none.

    Example:
        >>> first_line(ValueError("it is 3" + chr(10) + "and more"))
        'it is 3'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def root_cause(error: BaseException) -> BaseException:
    """Return the error that an error was raised from, and that one's, to the first.

    Example:
        >>> try:
        ...     try:
        ...         raise ValueError("no such operator")
        ...     except ValueError as reason:
        ...         raise RuntimeError("step 3 of 3 failed") from reason
        ... except RuntimeError as error:
        ...     root_cause(error)
        ValueError('no such operator')
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def listing(names: Sequence[str], most: int = 20) -> str:
    """Return names joined for a message: all up to ``most``, then how many more there are.

    Example:
        >>> listing(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
