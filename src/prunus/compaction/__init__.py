"""Compaction: the rewriting of a sparse model as a smaller dense model with the same outputs.

:func:`compact` traces the model into a graph of operator calls (``tracing``), finds dead units with
a rule for each operator (``analysis``, ``rules``, ``coupling``), decides what to change (``plan``,
``folding``), changes a copy (``surgery``) and compares its outputs (``probes``).
"""

from prunus.compaction.compact import compact
from prunus.compaction.file import load_compact, save_compact
from prunus.compaction.report import CompactionReport, ResizedTensor

__all__ = ["CompactionReport", "ResizedTensor", "compact", "load_compact", "save_compact"]
