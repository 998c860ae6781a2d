"""Compaction: a sparse model made into a smaller dense one that says the same."""

from prunus.compaction.compact import Compaction, Removed, compact, compacted
from prunus.compaction.file import load_compact, save_compact

__all__ = ["Compaction", "Removed", "compact", "compacted", "load_compact", "save_compact"]
