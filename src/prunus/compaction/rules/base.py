"""The interface of rules, and the rule for operators without one of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from prunus.compaction.coupling import Coupling
from prunus.compaction.graph import Call

__all__ = ["NoEffect", "Rule", "Unknown", "operator_names"]


def operator_names(text: str) -> frozenset[str]:
    """Return the names in a text, separated by white space."""
    return frozenset(text.split())


class Rule(ABC):
    """The analysis of one call of an operator.

    A subclass names its operators in ``operators``, and excludes the calls of them that it cannot
    analyse in ``supports``.

    Args:
        call: A call to which the rule applies.
    """

    operators: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, call: Call) -> None:
        self.call = call

    @classmethod
    def applies(cls, call: Call) -> bool:
        """Return whether this rule can analyse a call."""
        return call.op in cls.operators and bool(call.outputs) and cls.supports(call)

    @classmethod
    def supports(cls, call: Call) -> bool:
        """Return whether the rule holds for the arguments of a call of its operators."""
        return True

    @abstractmethod
    def forward(self, coupling: Coupling) -> None:
        """Set ``units`` and ``varies`` of the call's outputs, and couple or protect units."""

    @abstractmethod
    def backward(self) -> None:
        """Add to ``needed`` of the call's inputs, computed from ``needed`` of its outputs."""


class Unknown(Rule):
    """The rule for all other operators: every input is needed, and no size may change."""

    @classmethod
    def applies(cls, call: Call) -> bool:
        return True

    def forward(self, coupling: Coupling) -> None:
        for value in self.call.inputs:
            for units in value.units.values():
                coupling.protect(units, f"{self.call}: no rule for this operator")
        for out in self.call.outputs:
            out.varies = torch.ones(out.shape, dtype=torch.bool)
            if out.static and out.rank == 0:
                out.varies = torch.zeros((), dtype=torch.bool)

    def backward(self) -> None:
        # An operator without outputs is called for its side effects.
        if not self.call.outputs or any(bool(out.needed.any()) for out in self.call.outputs):
            for value in self.call.inputs:
                value.needed |= True


class NoEffect(Rule):
    """Assertions that ``torch.export`` inserts, which are not part of the model."""

    @classmethod
    def applies(cls, call: Call) -> bool:
        return call.op.startswith("_assert")

    def forward(self, coupling: Coupling) -> None:
        """Do nothing."""

    def backward(self) -> None:
        """Do nothing."""
