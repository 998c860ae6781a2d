"""What is wrong with what a caller gave, in one wording: what was expected, and what came."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, SupportsFloat

from prunus.errors import ArgumentError, ArgumentTypeError, PrunusError, listing

__all__ = [
    "TypeProblem",
    "as_number",
    "choice_problem",
    "method_problem",
    "number_problem",
    "raise_problems",
    "type_problem",
]


class TypeProblem(str):
    """A problem with the type of an argument, not with its value."""

    __slots__ = ()


def raise_problems(
    *problems: str | None, error: Callable[[str], PrunusError] | None = None
) -> None:
    """Raise one error that lists every problem, if there is any.

    Args:
        *problems: What the functions of this module returned: None where nothing is wrong.
        error: Builds the error from the message. Default: :class:`~prunus.errors.ArgumentTypeError`
            if every problem is a :class:`TypeProblem`, else :class:`~prunus.errors.ArgumentError`.

    Raises:
        PrunusError: There is a problem.

    Example:
        >>> raise_problems(number_problem("begin", -1, least=0), None)
        Traceback (most recent call last):
        prunus.errors.ArgumentError: begin must be at least 0, but is -1
    """
    found = [problem for problem in problems if problem is not None]
    if not found:
        return
    if error is None:
        of_types = all(isinstance(problem, TypeProblem) for problem in found)
        error = ArgumentTypeError if of_types else ArgumentError
    raise error("; ".join(found))


def number_problem(
    name: str,
    value: Any,
    *,
    whole: bool = False,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    optional: bool = False,
) -> str | None:
    """Say what is wrong with an argument that has to be a finite number within bounds.

    Args:
        name: What the argument is called.
        value: What came.
        whole: Whether it has to be of an integer type.
        above: It must be above this.
        least: It must be this or above.
        below: It must be below this.
        most: It must be this or below.
        optional: Whether None will do too.

    Example:
        >>> number_problem("fraction", 1.5, above=0, below=1)
        'fraction must be above 0 and below 1, but is 1.5'
    """
    if value is None and optional:
        return None
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    fits = fits and (whole or _finite(value))
    if (
        fits
        and (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    ):
        return None
    kind = "" if fits else "a whole number" if whole else "a finite number"
    bounds = _bounds(above, least, below, most)
    if kind and bounds:
        expected = f"{kind} of {bounds}" if bounds.startswith("at ") else f"{kind} {bounds}"
    else:
        expected = kind or bounds
    problem = f"{name} must be {expected}{' or None' * optional}, but is {_shown(value)}"
    return problem if _is_number(value) else TypeProblem(problem)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def _bounds(
    above: float | None, least: float | None, below: float | None, most: float | None
) -> str:
    upper = f"below {below:,}" if below is not None else "" if most is None else f"{most:,}"
    if least is not None:
        return f"from {least:,} to {upper}" if upper else f"at least {least:,}"
    lower = "" if above is None else f"above {above:,}"
    if below is None and most is not None:
        upper = f"at most {most:,}"
    return " and ".join(filter(None, [lower, upper]))


def choice_problem(
    name: str, value: object, choices: Sequence[object], expected: str = ""
) -> str | None:
    """Say what is wrong with an argument that has to be one of a few values.

    Args:
        name: What the argument is called.
        value: What came.
        choices: What it may be.
        expected: What these are called in the message. Default: their names.

    Example:
        >>> choice_problem("mode", "most", ["max", "min"])
        "mode must be 'max' or 'min', but is 'most'"
    """
    # True equals 1 to Python, and an array would be compared element by element.
    if not isinstance(value, bool) and not _shape(value) and value in choices:
        return None
    *most, last = map(repr, choices)
    said = expected or (f"{', '.join(most)} or {last}" if most else last)
    return f"{name} must be {said}, but is {_shown(value)}"


def type_problem(
    name: str,
    value: Any,
    kinds: type | tuple[type, ...],
    expected: str,
    *,
    mend: str = "",
    optional: bool = False,
) -> str | None:
    """Say what is wrong with an argument that has to be of a class.

    Args:
        name: What the argument is called.
        value: What came.
        kinds: The class or classes.
        expected: What they are called in the message, with an article.
        mend: What to do, if that is not plain.
        optional: Whether None will do too.

    Example:
        >>> type_problem("model", [1], Mapping, "a mapping", mend="give its state_dict")
        'model must be a mapping, but is [1]: give its state_dict'
    """
    if (value is None and optional) or isinstance(value, kinds):
        return None
    expected += " or None" * optional
    return TypeProblem(f"{name} must be {expected}, but is {_shown(value)}{mend and f': {mend}'}")


def method_problem(
    name: str,
    value: Any,
    methods: Sequence[str],
    expected: str,
    *,
    attributes: Sequence[str] = (),
) -> str | None:
    """Say what is wrong with an argument that has to be an object with these methods.

    Args:
        name: What the argument is called.
        value: What came.
        methods: What it must have that can be called.
        expected: What such an object is called in the message, with an article.
        attributes: What else it must have.

    Example:
        >>> method_problem("score", [1], ["append", "compute"], "a Score")
        'score must be a Score, but is [1], without compute'
    """
    if isinstance(value, type):
        return TypeProblem(
            f"{name} must be {expected}, but is the class {value.__name__}: pass an instance, "
            f"{value.__name__}(...)"
        )
    lacking = [attribute for attribute in attributes if not hasattr(value, attribute)]
    lacking += [method for method in methods if not callable(getattr(value, method, None))]
    if not lacking:
        return None
    return TypeProblem(
        f"{name} must be {expected}, but is {_shown(value)}, without {listing(lacking)}"
    )


def as_number(name: str, value: Any) -> float:
    """Return what came as a float: a number, or a tensor or array of a single one.

    NaN and infinity are numbers here.

    Raises:
        PrunusError: It is no such thing.

    Example:
        >>> import torch
        >>> as_number("the metric", torch.tensor([0.5]))
        0.5
    """
    held = value
    if callable(getattr(value, "item", None)):
        with contextlib.suppress(ValueError, RuntimeError):  # it holds several
            held = value.item()
    # An array that holds several would be asked in vain.
    if isinstance(held, SupportsFloat) and not isinstance(held, bool) and not _shape(held):
        with contextlib.suppress(OverflowError, RuntimeError):  # it has no memory, or no float
            return float(held)
    raise ArgumentTypeError(f"{name} must be a number, but is {_shown(value)}")


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor or an array; () where there is none."""
    try:
        return tuple(getattr(value, "shape", ()))
    except (TypeError, RuntimeError):  # a parameter that is not initialized has none to tell
        return ()


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Integral) and not isinstance(value, bool):
        bits = int(value).bit_length()
        return f"{value:,}" if bits <= 64 else f"a whole number of {bits:,} bits"
    name = type(value).__name__
    if shape := _shape(value):  # a tensor's elements would say little
        return f"{name} of shape {shape}"
    plain = value is None or isinstance(
        value, str | bytes | SupportsFloat | Sequence | Mapping | range
    )
    text = repr(value) if plain else ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"of type {name}"
