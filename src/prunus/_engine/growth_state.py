"""The state of growth: that of its rule, with the type of the growth that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus._engine.state_errors import state_error
from prunus._utils.checks import raise_problems, type_problem
from prunus.errors import CheckpointError
from prunus.growth import Growth, GrowthRule

__all__ = ["check_growth_state", "growth_state", "load_growth_state"]


def growth_state(growth: Growth | None, rule: GrowthRule) -> dict[str, Any]:
    """Return the state of a growth.

    Example:
        >>> from prunus.growth import NoGrowth
        >>> growth_state(None, NoGrowth(None, lambda: 0))
        {'type': 'None', 'rule': {}}
    """
    return {"type": _name(growth), "rule": rule.state_dict()}


def check_growth_state(growth: Growth | None, rule: GrowthRule, state: Mapping[str, Any]) -> None:
    """Check that :func:`load_growth_state` can load a state.

    Raises:
        CheckpointError: It is not one of growth, or that of a growth of another type, or an entry
            of the rule's is wrong.
    """
    expected = sorted(growth_state(growth, rule))
    if sorted(state) != expected:
        raise state_error(f"growth must have the entries {expected}, but has {sorted(state)}")
    own, found = _name(growth), state["type"]
    raise_problems(
        type_problem("the type of growth", found, str, "a name"),
        type_problem("the rule of growth", state["rule"], Mapping, "a mapping"),
        error=state_error,
    )
    if found != own:
        raise CheckpointError(
            f"this is the state of a Pruner with growth={found}, but this one has growth={own}: "
            "pass the growth that the state was saved with"
        )
    raise_problems(rule.problem(state["rule"]), error=state_error)


def load_growth_state(rule: GrowthRule, state: Mapping[str, Any]) -> None:
    """Load what :func:`growth_state` returned."""
    rule.load_state_dict(state["rule"])


def _name(growth: Growth | None) -> str:
    return "None" if growth is None else type(growth).__name__
