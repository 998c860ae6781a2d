"""Running sparse networks on the CPU faster than dense ones."""

from prunus.runtime.choosing import LayerTiming, SpeedUpReport, speed_up

__all__ = ["LayerTiming", "SpeedUpReport", "speed_up"]
