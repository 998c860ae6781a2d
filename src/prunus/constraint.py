"""The constraint: a floor that the validation metric of a delivered model must meet."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from prunus._utils.fields import checked, choice, number, validate
from prunus.errors import PrunusError

__all__ = ["Constraint", "Mode"]

Mode = Literal["max", "min"]

_RELATIVE = re.compile(r"\s*dense\s*(?:([-+*])\s*(\S+))?\s*")


def _parse_floor(floor: Any) -> tuple[str, float] | None:
    """Return an operator and a number: "=" for an absolute bound, else relative to dense.

    None if the floor is neither.
    """
    match = _RELATIVE.fullmatch(floor) if isinstance(floor, str) else None
    operator, text = (match[1] or "+", match[2] or "0") if match else ("=", floor)
    try:
        # bool is a number to Python, and a mistake here.
        value = math.nan if isinstance(text, bool) else float(text)
    except (ValueError, TypeError):
        return None
    return (operator, value) if math.isfinite(value) else None


def _floor_problem(name: str, floor: object) -> str | None:
    if floor is None or _parse_floor(floor) is not None:
        return None
    return (
        f'{name} must be a number, or "dense-0.005", "dense+0.1" or "dense*0.99", but is {floor!r}'
    )


@dataclass(frozen=True)
class Constraint:
    """A bound on the validation metric, absolute or relative to the dense network's.

    Args:
        floor: A number; or "dense", "dense-0.005", "dense+0.1" or "dense*0.99", where "dense" is
            the metric of the dense network; or None for no bound.
        mode: "max" if larger metrics are better (accuracy, BLEU), which must then stay at or above
            the bound; "min" if smaller are (loss, perplexity), which must stay at or below it.
        dense_metric: The metric of the dense network. Default None: unknown, so that a
            relative bound is unknown too.

    Raises:
        ArgumentError: ``floor`` or ``mode`` is none of these, or ``dense_metric`` is not finite.

    Example:
        >>> constraint = Constraint("dense-0.005", dense_metric=0.985)
        >>> round(constraint.bound, 4), constraint.met(0.979)
        (0.98, False)
        >>> loss = Constraint(2.5, mode="min")
        >>> loss.met(2.4), loss.bound_name, loss.relax
        (True, 'ceiling', 'raise')
    """

    floor: float | str | None = checked(None, by=_floor_problem)
    mode: Mode = choice("max", ("max", "min"))
    dense_metric: float | None = number(None, optional=True)

    def __post_init__(self) -> None:
        validate(self)

    def _terms(self) -> tuple[str, float]:
        """Return an operator and a number, as :func:`_parse_floor`; infinity without a floor."""
        if self.floor is None:
            return "=", -math.inf if self.mode == "max" else math.inf
        terms = _parse_floor(self.floor)
        assert terms is not None, "checked as the constraint was built"
        return terms

    @property
    def needs_dense_metric(self) -> bool:
        """Whether the bound is unknown until ``dense_metric`` is."""
        return self.dense_metric is None and self._terms()[0] != "="

    @property
    def bound(self) -> float:
        """The floor as a number; without a floor, the infinity that every metric meets.

        Raises:
            PrunusError: The floor is relative and ``dense_metric`` is None.
        """
        operator, value = self._terms()
        if operator == "=":
            return value
        if self.dense_metric is None:
            raise PrunusError(
                f"floor={self.floor!r} needs the metric of the dense network: pass dense_metric="
            )
        dense = self.dense_metric
        return {"-": dense - value, "+": dense + value, "*": dense * value}[operator]

    @property
    def bound_name(self) -> Literal["floor", "ceiling"]:
        """What messages call the bound: a floor under the metric or a ceiling over it."""
        return "floor" if self.mode == "max" else "ceiling"

    @property
    def relax(self) -> Literal["lower", "raise"]:
        """The verb of messages that advise to make the bound easier to meet."""
        return "lower" if self.mode == "max" else "raise"

    def with_dense_metric(self, metric: float) -> Constraint:
        """Return the same constraint, with this dense metric if it had none."""
        return self if self.dense_metric is not None else replace(self, dense_metric=metric)

    def met(self, metric: float) -> bool:
        """Return whether ``metric`` equals the bound or is better."""
        return metric >= self.bound if self.mode == "max" else metric <= self.bound

    def better(self, metric: float, other: float) -> bool:
        """Return whether ``metric`` is strictly better than ``other``."""
        return metric > other if self.mode == "max" else metric < other
