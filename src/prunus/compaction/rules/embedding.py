"""The rule for embedding tables."""

from __future__ import annotations

from prunus.compaction.coupling import Coupling
from prunus.compaction.rules.base import Rule

__all__ = ["Embedding"]


class Embedding(Rule):
    """``embedding``: rows of a table, selected by index."""

    operators = frozenset(("embedding",))

    def forward(self, coupling: Coupling) -> None:
        table, out = self.call["weight"], self.call.out
        if (rows := table.units.get(0)) is not None:
            coupling.protect(rows)
        if (columns := table.units.get(1)) is not None:
            out.units[out.rank - 1] = columns
        for dim, units in self.call["indices"].units.items():
            out.units[dim] = units
        out.varies = (table.data != table.data[:1]).any(0).cpu().expand(out.shape).contiguous()

    def backward(self) -> None:
        live = self.call.out.needed & self.call.out.varies
        out = self.call.out  # a single vector if the index is a scalar
        self.call["weight"].needed |= out.needed.reshape(-1, out.shape[-1]).any(0)
        self.call["indices"].needed |= live.any(-1)
