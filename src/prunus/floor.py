"""The floor: the validation metric that a user insists on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from prunus.arguments import refusal, refuse, wrong_choice
from prunus.errors import UserError

__all__ = ["Floor", "Mode"]

Mode = Literal["max", "min"]

_RELATIVE = re.compile(r"\s*dense\s*(?:([-+*])\s*(\S+))?\s*")


@dataclass(frozen=True)
class Floor:
    """A bound on the validation metric, absolute or relative to the dense network's.

    Args:
        bound: A number; or "dense", "dense-0.005", "dense+0.1" or "dense*0.99", where "dense" is
            the metric of the dense network; or None for no bound.
        mode: "max" if larger metrics are better (accuracy, BLEU), which must then stay at or above
            the bound; "min" if smaller are (loss, perplexity), which must stay at or below it.

    Raises:
        UserError: ``bound`` or ``mode`` is none of these.

    Example:
        >>> floor = Floor("dense-0.005")
        >>> round(floor.value(dense=0.985), 4), floor.met(0.979, dense=0.985)
        (0.98, False)
        >>> Floor(2.5, mode="min").met(2.4)
        True
    """

    bound: float | str | None = None
    mode: Mode = "max"

    def __post_init__(self) -> None:
        refuse(wrong_choice("mode", self.mode, ("max", "min")), refusal(self._terms))

    def _terms(self) -> tuple[str, float]:
        """Return an operator and a number: "=" for an absolute bound, else relative to dense."""
        if self.bound is None:
            return "=", -math.inf if self.mode == "max" else math.inf
        match = _RELATIVE.fullmatch(self.bound) if isinstance(self.bound, str) else None
        sign, text = (match[1] or "+", match[2] or "0") if match else ("=", self.bound)
        try:
            # For bool is a number to Python, and a mistake here.
            number = math.nan if isinstance(text, bool) else float(text)
        except (ValueError, TypeError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                'a floor is a number, or "dense-0.005", "dense+0.1" or "dense*0.99", but is '
                f"{self.bound!r}"
            )
        return sign, number

    @property
    def relative(self) -> bool:
        """Whether the dense network's metric is needed to know the bound."""
        return self._terms()[0] != "="

    def value(self, dense: float | None = None) -> float:
        """Return the bound as a number; without a bound, the infinity that every metric meets.

        Raises:
            UserError: The floor is relative and ``dense`` is None.
        """
        sign, number = self._terms()
        if sign == "=":
            return number
        if dense is None:
            raise UserError(
                f"the floor {self.bound!r} needs the dense network's metric, but has none"
            )
        return {"-": dense - number, "+": dense + number, "*": dense * number}[sign]

    def met(self, metric: float, dense: float | None = None) -> bool:
        """Say whether ``metric`` is at the bound or on its better side."""
        value = self.value(dense)
        return metric >= value if self.mode == "max" else metric <= value

    def better(self, metric: float, other: float) -> bool:
        """Say whether ``metric`` is strictly better than ``other``."""
        return metric > other if self.mode == "max" else metric < other
