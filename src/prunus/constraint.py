"""The constraint: a floor that the validation metric of a delivered model must meet."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from prunus._utils.checks import as_scalar
from prunus._utils.fields import checked, choice, number, validate, value_problems
from prunus.errors import PrunusError

__all__ = ["Constraint", "Mode", "constraint_problems"]

Mode = Literal["max", "min"]

_RELATIVE = re.compile(r"\s*dense\s*(?:([-+*])\s*([^\s%]+)\s*(%)?)?\s*")

_FACTORS: Mapping[str, tuple[float, float]] = {"max": (20, math.inf), "min": (80, 200)}
"""The factors, by mode, between a floor and a metric of different units, such as percent and
fraction. Early in training a metric may be as far from its floor for another reason, so the smaller
one must be at most 1 and the larger one above 1, too."""


class _Terms(NamedTuple):
    """A parsed floor: the operator "=" for an absolute bound, else relative to dense."""

    operator: str
    value: float
    percent: bool = False

    @property
    def distance(self) -> float:
        """The signed distance from dense, of "+" and "-"."""
        return -self.value if self.operator == "-" else self.value


def _parse_floor(floor: Any) -> _Terms | None:
    """Return the terms of a floor, or None if it is none."""
    match = _RELATIVE.fullmatch(floor) if isinstance(floor, str) else None
    operator, text = (match[1] or "+", match[2] or "0") if match else ("=", floor)
    try:
        # bool is a number to Python, and a mistake here.
        value = math.nan if isinstance(text, bool) else float(text)
    except (ValueError, TypeError):
        return None
    percent = match is not None and match[3] is not None
    return _Terms(operator, value, percent) if math.isfinite(value) else None


def _floor_problem(name: str, floor: object) -> str | None:
    if floor is None or _parse_floor(floor) is not None:
        return None
    return (
        f'{name} must be a number, or "dense-0.005", "dense-0.5%", "dense+2%" or "dense*0.99", but '
        f"is {floor!r}"
    )


def _sign_problem(floor: Any, mode: object) -> str | None:
    """Return what is wrong with a relative floor that asks for more than the dense network."""
    terms = _parse_floor(floor)
    if terms is None or terms.operator not in ("+", "-") or mode not in ("max", "min"):
        return None
    if (terms.distance <= 0) if mode == "max" else (terms.distance >= 0):
        return None
    amount, unit = f"{abs(terms.value):g}", "%" * terms.percent
    sign, better = ("-", "above") if mode == "max" else ("+", "below")
    allowed = "smaller" if mode == "max" else "larger"
    return (
        f'floor={floor!r} with mode="{mode}" asks for a metric {better} that of the dense network, '
        f'before anything is removed: pass "dense{sign}{amount}{unit}" to allow a {allowed} one, '
        f'or, if it is meant, a number or "dense*..."'
    )


def constraint_problems(floor: Any, mode: Any, dense_metric: Any) -> Iterator[str | None]:
    """Yield what is wrong with the arguments of a :class:`Constraint`, without building one.

    Args:
        floor: As for :class:`Constraint`.
        mode: As for :class:`Constraint`.
        dense_metric: As for :class:`Constraint`.
    """
    floor, dense_metric = as_scalar(floor), as_scalar(dense_metric)
    arguments = {"floor": floor, "mode": mode, "dense_metric": dense_metric}
    problems = list(value_problems(Constraint, arguments))
    yield from problems
    yield _sign_problem(floor, mode)
    if not any(problems) and dense_metric is not None:
        yield Constraint(floor, mode).unit_problem(float(dense_metric))


@dataclass(frozen=True)
class Constraint:
    """A bound on the validation metric, absolute or relative to the dense network's.

    With m the metric of the dense network, a relative floor is

    * ``"dense"``: m itself;
    * ``"dense-0.005"`` or ``"dense+0.1"``: m - 0.005 or m + 0.1, in the metric's own unit: half a
      point for an accuracy between 0 and 1, and 0.005 points for one between 0 and 100;
    * ``"dense-0.5%"`` or ``"dense+2%"``: m - 0.005·|m| or m + 0.02·|m|: a percentage of the dense
      metric, not percentage points, and so the same whatever the unit. For an accuracy of 0.98 it
      is 0.9751, and "dense-0.005" is 0.975; for one of 0.5 they are 0.4975 and 0.495;
    * ``"dense*0.99"``: 0.99·m.

    Args:
        floor: A number, in the unit of the metric; or a relative floor, as above; or None for no
            bound. A floor with "-" is for ``mode="max"``, one with "+" for ``mode="min"``.
        mode: "max" if larger metrics are better (accuracy, BLEU), which must then stay at or above
            the bound; "min" if smaller are (loss, perplexity), which must stay at or below it.
        dense_metric: The metric of the dense network. Default None: unknown, so that a
            relative bound is unknown too.

    Raises:
        ArgumentError: ``floor`` or ``mode`` is none of these, ``dense_metric`` is not finite, or
            the sign of a relative floor asks for a metric better than the dense network's.

    Example:
        >>> constraint = Constraint("dense-0.5%", dense_metric=0.98)
        >>> round(constraint.bound, 4), constraint.met(0.975)
        (0.9751, False)
        >>> loss = Constraint(2.5, mode="min")
        >>> loss.met(2.4), loss.bound_name, loss.relax
        (True, 'ceiling', 'raise')
    """

    floor: float | str | None = checked(None, by=_floor_problem)
    mode: Mode = choice("max", ("max", "min"))
    dense_metric: float | None = number(None, optional=True)

    def __post_init__(self) -> None:
        for name in ("floor", "dense_metric"):  # metrics are often tensors of a single element
            object.__setattr__(self, name, as_scalar(getattr(self, name)))
        validate(self, _sign_problem(self.floor, self.mode))

    def _terms(self) -> _Terms:
        """Return the terms of the floor; infinity without a floor."""
        if self.floor is None:
            return _Terms("=", -math.inf if self.mode == "max" else math.inf)
        terms = _parse_floor(self.floor)
        assert terms is not None, "checked as the constraint was built"
        return terms

    @property
    def needs_dense_metric(self) -> bool:
        """Whether the bound is unknown until ``dense_metric`` is."""
        return self.dense_metric is None and self._terms().operator != "="

    @property
    def bound(self) -> float:
        """The floor as a number; without a floor, the infinity that every metric meets.

        Raises:
            PrunusError: The floor is relative and ``dense_metric`` is None.
        """
        terms = self._terms()
        if terms.operator == "=":
            return terms.value
        if self.dense_metric is None:
            raise PrunusError(
                f"floor={self.floor!r} needs the metric of the dense network: pass dense_metric="
            )
        dense = self.dense_metric
        if terms.operator == "*":
            return dense * (terms.value / 100 if terms.percent else terms.value)
        return dense + terms.distance * (abs(dense) / 100 if terms.percent else 1.0)

    @property
    def description(self) -> str:
        """The floor and the number that it is, for messages.

        Example:
            >>> Constraint("dense-0.5%", dense_metric=0.98).description
            "'dense-0.5%' (0.9751, which is 0.5 percent of the dense metric 0.98 below it)"
            >>> Constraint(0.9).description
            '0.9'
        """
        if self.needs_dense_metric:
            return f"{self.floor!r} (unknown)"
        terms, origin = self._terms(), ""
        if terms.operator == "=":
            return f"{self.bound:.6g}"
        if terms.percent and terms.operator != "*":
            side = "above" if terms.distance > 0 else "below"
            origin = (
                f", which is {abs(terms.value):g} percent of the dense metric "
                f"{self.dense_metric:.6g} {side} it"
            )
        return f"{self.floor!r} ({self.bound:.6g}{origin})"

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

    def unit_problem(self, metric: float) -> str | None:
        """Return what is wrong with an absolute floor that has another unit than a metric.

        One of the two is at most 1, and the other above 1 and at least 20 times as large, such as a
        floor of 98 for an accuracy of 0.98, or of 0.98 for an accuracy of 98, which would be met
        until nothing is left. With ``mode="min"`` it must be 80 to 200 times as large, and a
        ceiling above the metric is accepted: a loss has no natural unit, and 10 for one of 0.1 may
        be meant.

        Args:
            metric: The metric of the dense network, or the first one measured.

        Example:
            >>> print(Constraint(98).unit_problem(0.98))  # doctest: +ELLIPSIS
            the floor 98 and the validation metric 0.98 differ by a factor of 100, as if ...
            >>> Constraint(0.98).unit_problem(0.1) is None
            True
        """
        terms = self._terms()
        if terms.operator != "=" or (self.mode == "min" and terms.value >= metric):
            return None
        small, large = sorted((terms.value, metric))
        least, most = _FACTORS[self.mode]
        if not (math.isfinite(terms.value) and 0 < small <= 1 < large):
            return None
        if not least <= large / small <= most:
            return None
        fix = terms.value / 100 if terms.value == large else terms.value * 100
        sign = "-" if self.mode == "max" else "+"
        return (
            f"the {self.bound_name} {terms.value:g} and the validation metric {metric:.6g} differ "
            f"by a factor of {large / small:.3g}, as if their units differed: pass floor={fix:g}, "
            f'or a floor relative to the dense network, "dense{sign}0.5%"'
        )

    def wide_problem(self, metric: float) -> str | None:
        """Return why a relative floor probably means a percentage of the dense metric, or None.

        It accepts much worse metrics: for one between 0 and 1 a distance of at least a tenth, or,
        with ``mode="min"``, of the metric itself; and any product below half of a metric.

        Args:
            metric: The metric of the dense network.

        Example:
            >>> print(Constraint("dense-0.5").wide_problem(0.98))  # doctest: +ELLIPSIS
            the floor 'dense-0.5' accepts 0.48 where the dense network has 0.98: for ...
            >>> Constraint("dense-0.05").wide_problem(0.98) is None
            True
        """
        terms, maximized = self._terms(), self.mode == "max"
        sign, amount = "-" if maximized else "+", abs(terms.value)
        if terms.operator == "*":
            wide = maximized and terms.value < (50 if terms.percent else 0.5)
        else:
            least = 0.1 if maximized else metric
            wide = terms.operator == sign and not terms.percent
            wide = wide and 0 < metric <= 1 and amount >= least
        if not wide:
            return None
        accepted = self.with_dense_metric(metric).bound
        return (
            f"the {self.bound_name} {self.floor!r} accepts {accepted:.3g} where the dense network "
            f'has {metric:.3g}: for {amount:g} percent pass "dense{sign}{amount:g}%"'
        )

    def not_met_message(self, validations: int, best: float | None) -> str:
        """Return the message that no validation met the bound.

        Args:
            validations: The number of validations.
            best: The best of their metrics; None if there was none.

        Example:
            >>> print(Constraint(0.9).not_met_message(3, 0.85))  # doctest: +ELLIPSIS
            no validation met the floor 0.9: the best of 3 metrics is 0.85; lower the ...
            >>> print(Constraint(0.9).not_met_message(0, None))  # doctest: +ELLIPSIS
            there was no validation to judge by the floor 0.9: call pruner.step(metric) ...
        """
        if validations == 0 or best is None:
            return (
                f"there was no validation to judge by the {self.bound_name} {self.description}: "
                "call pruner.step(metric) after each validation, before finish()"
            )
        metrics = "the only metric" if validations == 1 else f"the best of {validations} metrics"
        return (
            f"no validation met the {self.bound_name} {self.description}: {metrics} is "
            f"{best:.6g}; {self.relax} the {self.bound_name}, train longer, or remove less"
        )

    def met(self, metric: float) -> bool:
        """Return whether ``metric`` equals the bound or is better."""
        return metric >= self.bound if self.mode == "max" else metric <= self.bound

    def margin(self, metric: float) -> float:
        """Return by how much ``metric`` is better than the bound; below 0 if it is worse."""
        return metric - self.bound if self.mode == "max" else self.bound - metric

    def better(self, metric: float, other: float) -> bool:
        """Return whether ``metric`` is strictly better than ``other``."""
        return metric > other if self.mode == "max" else metric < other
