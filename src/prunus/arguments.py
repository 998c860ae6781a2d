"""Checks of what a caller gave, in one wording: what was expected, and what came."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from prunus.errors import UserError, listing

__all__ = ["check_kind", "check_methods", "check_number", "number"]


def check_number(
    name: str,
    value: Any,
    *,
    whole: bool = False,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    optional: bool = False,
) -> None:
    """Make sure that an argument is a finite number, of a range that begins somewhere if it ends.

    Args:
        name: What the argument is called.
        value: What came.
        whole: Whether it has to be of an integer type.
        above: It must be above this.
        least: It must be this or above.
        below: It must be below this.
        most: It must be this or below.
        optional: Whether None will do too.

    Raises:
        UserError: It is not.

    Example:
        >>> check_number("fraction", 1.5, above=0, below=1)
        Traceback (most recent call last):
        prunus.errors.UserError: fraction must be above 0 and below 1, but is 1.5
    """
    if value is None and optional:
        return
    kind = Integral if whole else Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if (
        fits
        and (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    ):
        return
    words = [] if fits else ["a whole number" if whole else "a finite number"]
    upper = f"below {below:,}" if below is not None else "" if most is None else f"{most:,}"
    if least is not None:
        words.append(f"from {least:,} to {upper}" if upper else f"at least {least:,}")
    elif above is not None:
        words.append(f"above {above:,}{upper and f' and {upper}'}")
    expected = " ".join(words) + " or None" * optional
    raise UserError(f"{name} must be {expected}, but is {_shown(value)}")


def number(name: str, value: Any) -> float:
    """Return what came as a float: a number, or a tensor or array of a single one.

    NaN and infinity are numbers here.

    Raises:
        UserError: It is no such thing.

    Example:
        >>> import torch
        >>> number("the metric", torch.tensor([0.5]))
        0.5
    """
    held = value
    if callable(getattr(value, "item", None)):
        with contextlib.suppress(ValueError, RuntimeError):  # it holds several
            held = value.item()
    if isinstance(held, Real):
        return float(held)
    raise UserError(f"{name} must be a number, but is {_shown(value)}")


def check_kind(
    name: str,
    value: Any,
    kinds: type | tuple[type, ...],
    expected: str,
    *,
    mend: str = "",
    optional: bool = False,
) -> None:
    """Make sure that an argument is of a class.

    Args:
        name: What the argument is called.
        value: What came.
        kinds: The class or classes.
        expected: What they are called in the message, with an article.
        mend: What to do, if that is not plain.
        optional: Whether None will do too.

    Raises:
        UserError: It is not.

    Example:
        >>> check_kind("model", [1], Mapping, "a mapping")
        Traceback (most recent call last):
        prunus.errors.UserError: model must be a mapping, but is [1]
    """
    if (value is None and optional) or isinstance(value, kinds):
        return
    expected += " or None" * optional
    raise UserError(f"{name} must be {expected}, but is {_shown(value)}{mend and f': {mend}'}")


def check_methods(name: str, value: Any, methods: Sequence[str], expected: str) -> None:
    """Make sure that an argument is an object with these methods, and no class of such objects.

    Raises:
        UserError: It is not.

    Example:
        >>> check_methods("score", list, ["append"], "a Score")
        Traceback (most recent call last):
        prunus.errors.UserError: score must be a Score, but is the class list: give an instance, ...
    """
    if isinstance(value, type):
        raise UserError(
            f"{name} must be {expected}, but is the class {value.__name__}: give an instance, "
            f"{value.__name__}(...)"
        )
    lacking = [method for method in methods if not callable(getattr(value, method, None))]
    if lacking:
        raise UserError(
            f"{name} must be {expected}, but is {_shown(value)}, without {listing(lacking)}"
        )


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Integral) and not isinstance(value, bool):
        return f"{value:,}"
    if getattr(value, "shape", None):  # a tensor's elements would say little
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    plain = value is None or isinstance(value, str | bytes | Real | Sequence | Mapping)
    text = repr(value) if plain else ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"of type {type(value).__name__}"
