"""Compaction: a sparse model made into a smaller dense one that says the same."""

from prunus.compaction.compact import Compaction, Removed, compact, compacted

__all__ = ["Compaction", "Removed", "compact", "compacted"]
