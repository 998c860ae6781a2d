"""Patterns: which shapes of weights are removed together.

Without a pattern weights are removed singly. With one, the weights of a group are removed together
(:class:`Block`, :class:`Rows`, :class:`Columns`, :class:`Channels`, :class:`Heads`), or some of
each group stay (:class:`NM`).
"""

from prunus.patterns.base import Pattern
from prunus.patterns.shapes import NM, Block, Channels, Columns, Heads, Rows

__all__ = [
    "NM",
    "Block",
    "Channels",
    "Columns",
    "Heads",
    "Pattern",
    "Rows",
]
