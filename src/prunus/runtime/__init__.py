"""Sparse layers that run faster than dense ones on the CPU, for inference and training."""

from prunus.runtime.report import LayerTiming, SpeedUpReport
from prunus.runtime.speed_up import speed_up

__all__ = ["LayerTiming", "SpeedUpReport", "speed_up"]
