"""Compaction: a sparse model made into a smaller dense one that says the same."""

from prunus.compaction.compact import CompactionReport, Removed, compact
from prunus.compaction.file import load_compact, save_compact

__all__ = ["CompactionReport", "Removed", "compact", "load_compact", "save_compact"]
