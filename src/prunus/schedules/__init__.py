"""Schedules: when weights are removed, and how many are then kept.

The pruner calls a schedule after every optimizer step and after every validation; it returns the
number of weights to keep, or None to remove nothing. It does not depend on tensors, scores or
penalties. The base class never removes anything: the dense baseline.
"""

from prunus.schedules.base import MetricIfKept, PruningStatus, Restore, Schedule
from prunus.schedules.gradual import GradualPruning
from prunus.schedules.iterative import IterativePruning
from prunus.schedules.one_shot import OneShot
from prunus.schedules.threshold_search import ThresholdSearch

__all__ = [
    "GradualPruning",
    "IterativePruning",
    "MetricIfKept",
    "OneShot",
    "PruningStatus",
    "Restore",
    "Schedule",
    "ThresholdSearch",
]
