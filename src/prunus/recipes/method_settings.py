"""The settings of a named method, and the parts of a method that settings select.

One table for each setting translates in both directions: settings into the objects that a run is
built from, and the objects of a :class:`~prunus.Method` into settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus.allocation import (
    Allocation,
    ErdosRenyiAllocation,
    GlobalAllocation,
    UniformAllocation,
)
from prunus.growth import (
    AlternatingGrowth,
    GradientGrowth,
    Growth,
    RandomGrowth,
    SoftGrowth,
)
from prunus.methods import DecayOverEpoch, Method, methods
from prunus.penalties.coefficients import (
    ConstantRelevance,
    ExponentialRelevance,
    LinearRelevance,
)
from prunus.penalties.formula import Power
from prunus.penalties.strengths import AutomaticStrength, ConstantStrength, LearningRateStrength
from prunus.schedules import GradualPruning, IterativePruning, OneShot, Schedule
from prunus.scores import (
    FisherScore,
    MagnitudeScore,
    MovementScore,
    RandomScore,
    Score,
    SensitivityScore,
    TaylorScore,
)

__all__ = [
    "ALLOCATIONS",
    "COEFFICIENTS",
    "GROWTHS",
    "SCHEDULES",
    "SCORES",
    "STRENGTHS",
    "method_settings",
    "named_method",
]

COEFFICIENTS: Mapping[
    str, tuple[type[ExponentialRelevance | LinearRelevance | ConstantRelevance], Power]
] = {
    "relevance": (ExponentialRelevance, 2),
    "lobster": (LinearRelevance, 2),
    "l2": (ConstantRelevance, 2),
    "l1": (ConstantRelevance, 1),
}
"""The type of coefficient and the power of each ``penalty`` but "none"."""

STRENGTHS: Mapping[str, type[ConstantStrength | LearningRateStrength | DecayOverEpoch]] = {
    "constant": ConstantStrength,
    "lr": LearningRateStrength,
    "linear": DecayOverEpoch,
}
"""The type of strength of each ``strength_schedule``; its only argument is ``strength``."""

SCORES: Mapping[str, Score] = {
    "magnitude": MagnitudeScore(),
    "fisher": FisherScore(),
    "sensitivity": SensitivityScore(),
    "taylor": TaylorScore(),
    "movement": MovementScore(),
    "random": RandomScore(),
}
"""The score of each ``score``."""

ALLOCATIONS: Mapping[str, Allocation] = {
    "global": GlobalAllocation(),
    "uniform": UniformAllocation(),
    "erk": ErdosRenyiAllocation(),
}
"""The allocation of each ``allocation``."""

GROWTHS: Mapping[str, type[Growth] | None] = {
    "none": None,
    "soft": SoftGrowth,
    "random": RandomGrowth,
    "gradient": GradientGrowth,
    "alternating": AlternatingGrowth,
}
"""The type of growth of each ``growth``."""

SCHEDULES: Mapping[str, type[Schedule]] = {
    "iterative": IterativePruning,
    "gradual": GradualPruning,
    "oneshot": OneShot,
}
"""The type of schedule of each ``schedule``."""


def method_settings(method: Method) -> dict[str, Any]:
    """Return the settings that make a recipe use a method.

    A setting that the method leaves open, such as the strength of l2, is not among them, and
    neither is the schedule: both stay the recipe's. A method with growth brings its schedule,
    because not every schedule accepts one.

    Raises:
        KeyError: A part of the method is not in the tables.

    Example:
        >>> for name, value in method_settings(methods["l2"]).items():
        ...     print(name, value)
        penalty l2
        apply decoupled
        score magnitude
        allocation global
        growth none
    """
    order = {
        "score": _key(SCORES, method.score),
        "allocation": _key(ALLOCATIONS, method.allocation),
        "growth": _key(GROWTHS, method.growth),
        **({} if method.growth is None else {"schedule": _key(SCHEDULES, method.schedule)}),
    }
    coefficient, strength = method.coefficient, method.strength
    if coefficient is None:
        return {"penalty": "none", **order}
    settings: dict[str, Any] = {
        "penalty": _key(COEFFICIENTS, (type(coefficient), method.power)),
        "apply": method.apply,
    }
    if not isinstance(coefficient, ConstantRelevance):
        # The fields of a coefficient have the names of their settings.
        settings |= {field: getattr(coefficient, field) for field in ("alpha", "relative")}
        settings["smoothing"] = method.smoothing
    if isinstance(strength, AutomaticStrength):
        settings["strength"] = "auto"
    elif strength is not None:
        settings["strength_schedule"] = _key(STRENGTHS, type(strength))
        (settings["strength"],) = vars(strength).values()
    return settings | order


def named_method(settings: Mapping[str, Any]) -> Method | None:
    """Return the method whose settings are all among these, or None.

    The schedule does not count: a method goes with any that it accepts.

    Args:
        settings: All settings of a recipe by name.

    Example:
        >>> settings = {"penalty": "none", "score": "random", "allocation": "global"}
        >>> named_method({**settings, "growth": "none"}).name
        'random'
    """
    for method in methods.values():
        own = method_settings(method)
        own.pop("schedule", None)
        if own.items() <= settings.items():
            return method
    return None


def _key(table: Mapping[str, Any], part: object) -> str:
    """Return the key of a part in one of the tables."""
    for key, value in table.items():
        if value == part:
            return key
    raise KeyError(part)
