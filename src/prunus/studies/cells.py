"""Cells: the runs that the plan of a study consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prunus.errors import listing

__all__ = ["Cell", "duplicates_problem", "format_ratio"]


class Cell(NamedTuple):
    """A run of the plan.

    Attributes:
        method: The label of its method.
        ratio: The compression ratio to reach.
        seed: The seed, which also selects the dense network.
    """

    method: str
    ratio: float
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, ratio {format_ratio(self.ratio)}, seed {self.seed}"


def format_ratio(ratio: float) -> str:
    """Return a ratio as the shortest text that reads as the same number.

    Example:
        >>> format_ratio(25.0), format_ratio(3.334)
        ('25', '3.334')
    """
    return repr(float(ratio)).removesuffix(".0")


def duplicates_problem(name: str, values: Sequence[Any]) -> str | None:
    """Return a problem if values occur more than once.

    Args:
        name: The name of the option or argument.
        values: Its values.

    Example:
        >>> duplicates_problem("--seeds", [0, 1, 0])
        '--seeds has 0 more than once: pass each value once'
    """
    found = [str(value) for value in dict.fromkeys(values) if values.count(value) > 1]
    return f"{name} has {listing(found)} more than once: pass each value once" if found else None
