"""Compaction: the rewriting of a sparse model as a smaller dense model with the same outputs."""

from prunus.compaction.compact import compact
from prunus.compaction.file import load_compact, save_compact
from prunus.compaction.report import CompactionReport, ResizedTensor

__all__ = ["CompactionReport", "ResizedTensor", "compact", "load_compact", "save_compact"]
