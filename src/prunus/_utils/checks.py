"""Checks of arguments, whose messages all state what was expected and what was received."""

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
    "as_scalar",
    "choice_problem",
    "either_problem",
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
        *problems: The results of the functions of this module: None where nothing is wrong.
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
    """Return what is wrong with an argument that must be a finite number within bounds.

    Args:
        name: The argument's name.
        value: Its value.
        whole: Whether its type must be an integer.
        above: Exclusive lower bound.
        least: Inclusive lower bound.
        below: Exclusive upper bound.
        most: Inclusive upper bound.
        optional: Whether None is accepted.

    Example:
        >>> number_problem("fraction", 1.5, above=0, below=1)
        'fraction must be above 0 and below 1, but is 1.5'
        >>> number_problem("sparsity", 90, above=0, below=1)
        'sparsity must be above 0 and below 1, but is 90: pass sparsity=0.9 for 90 percent'
    """
    if value is None and optional:
        return None
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    is_number = is_number and (whole or _finite(value))
    if (
        is_number
        and (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    ):
        return None
    noun = "" if is_number else "a whole number" if whole else "a finite number"
    expected = _expected_number(noun, above, least, below, most)
    problem = f"{name} must be {expected}{' or None' * optional}, but is {_shown(value)}"
    if is_number and not whole and (below == 1 or most == 1) and 2 < value <= 100:
        bounds: dict[str, Any] = {"above": above, "least": least, "below": below, "most": most}
        if number_problem(name, value / 100, **bounds) is None:
            setting = f"{name}=" if name.isidentifier() else ""
            problem += f": pass {setting}{value / 100:g} for {value:g} percent"
    return problem if _is_number(value) else TypeProblem(problem)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def _expected_number(
    noun: str, above: float | None, least: float | None, below: float | None, most: float | None
) -> str:
    """Return a noun and its bounds, such as "a finite number of at least 1"; bounds alone if ""."""
    of = f"{noun} of " if noun else ""
    noun = f"{noun} " if noun else ""
    if least is not None and below is None and most is None:
        return f"{of}at least {least:,}"
    if least is not None:
        upper = f"{most:,}" if below is None else f"below {below:,}"
        return f"{noun}from {least:,} to {upper}"
    lower = "" if above is None else f"above {above:,}"
    upper = f"below {below:,}" if below is not None else "" if most is None else f"at most {most:,}"
    if not lower and below is None and most is not None:
        return of + upper
    return (noun + " and ".join(filter(None, [lower, upper]))).rstrip()


def choice_problem(
    name: str, value: object, choices: Sequence[object], expected: str = ""
) -> str | None:
    """Return what is wrong with an argument that must be one of a few values.

    Args:
        name: The argument's name.
        value: Its value.
        choices: The accepted values.
        expected: What the message calls them. Default: their names.

    Example:
        >>> choice_problem("mode", "most", ["max", "min"])
        "mode must be 'max' or 'min', but is 'most'"
    """
    # True equals 1 to Python, and an array would be compared element by element.
    if not isinstance(value, bool) and not _shape(value) and value in choices:
        return None
    *most, last = map(repr, choices)
    expected = expected or (f"{', '.join(most)} or {last}" if most else last)
    return f"{name} must be {expected}, but is {_shown(value)}"


def either_problem(**arguments: object) -> str | None:
    """Return what is wrong with arguments of which exactly one must not be None.

    Args:
        **arguments: The arguments by name.

    Example:
        >>> either_problem(sparsity=None, kept=None)
        'pass either sparsity or kept, but got sparsity=None and kept=None'
    """
    if sum(value is not None for value in arguments.values()) == 1:
        return None
    found = " and ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"pass either {' or '.join(arguments)}, but got {found}"


def type_problem(
    name: str,
    value: Any,
    types: type | tuple[type, ...],
    expected: str,
    *,
    fix: str = "",
    optional: bool = False,
) -> str | None:
    """Return what is wrong with an argument that must be an instance of a class.

    Args:
        name: The argument's name.
        value: Its value.
        types: The class or classes.
        expected: What the message calls them, with an article.
        fix: How to fix it, where that is not obvious.
        optional: Whether None is accepted.

    Example:
        >>> type_problem("model", [1], Mapping, "a mapping", fix="pass its state_dict")
        'model must be a mapping, but is [1]: pass its state_dict'
    """
    if (value is None and optional) or isinstance(value, types):
        return None
    expected += " or None" * optional
    if not fix and isinstance(value, type) and issubclass(value, types):
        fix = f"pass an instance, {value.__name__}(...)"
    return TypeProblem(f"{name} must be {expected}, but is {_shown(value)}{fix and f': {fix}'}")


def method_problem(
    name: str,
    value: Any,
    methods: Sequence[str],
    expected: str,
    *,
    attributes: Sequence[str] = (),
    fix: str = "",
) -> str | None:
    """Return what is wrong with an argument that must be an object with these methods.

    Args:
        name: The argument's name.
        value: Its value.
        methods: The methods it must have.
        expected: What the message calls such an object, with an article.
        attributes: The other attributes it must have.
        fix: What the message says for a text in place of the object, rather than what it lacks.

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
    if fix and isinstance(value, str):
        return TypeProblem(f"{name} must be {expected}, but is {_shown(value)}: {fix}")
    return TypeProblem(
        f"{name} must be {expected}, but is {_shown(value)}, without {listing(lacking)}"
    )


def as_number(name: str, value: Any) -> float:
    """Return a value as a float: a number, or a tensor or array of a single one.

    NaN and infinity are accepted.

    Args:
        name: What the message calls the value.
        value: The value.

    Raises:
        ArgumentTypeError: It is none of these.

    Example:
        >>> import torch
        >>> as_number("the metric", torch.tensor([0.5]))
        0.5
    """
    scalar = as_scalar(value)
    # An array of several elements has ``__float__`` too, which would fail.
    if isinstance(scalar, SupportsFloat) and not isinstance(scalar, bool) and not _shape(scalar):
        with contextlib.suppress(OverflowError, RuntimeError):  # too large, or without memory
            return float(scalar)
    raise ArgumentTypeError(f"{name} must be a number, but is {_shown(value)}")


def as_scalar(value: Any) -> Any:
    """Return the element of a tensor or array that has a single one, and any other value as it is.

    Example:
        >>> import torch
        >>> as_scalar(torch.tensor([0.5])), as_scalar("dense-1%")
        (0.5, 'dense-1%')
    """
    if callable(getattr(value, "item", None)):
        with contextlib.suppress(ValueError, RuntimeError):  # it has several elements
            return value.item()
    return value


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor or an array; () where there is none."""
    try:
        return tuple(getattr(value, "shape", ()))
    except (TypeError, RuntimeError):  # an uninitialized parameter has no shape
        return ()


def _shown(value: Any) -> str:
    """Return a value as a message shows it: its literal if short, else its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Integral) and not isinstance(value, bool):
        bits = int(value).bit_length()
        return f"{value:,}" if bits <= 64 else f"a whole number of {bits:,} bits"
    name = type(value).__name__
    if shape := _shape(value):  # shorter and more useful than its elements
        return f"{name} of shape {shape}"
    plain = value is None or isinstance(
        value, str | bytes | SupportsFloat | Sequence | Mapping | range
    )
    text = repr(value) if plain else ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"of type {name}"
