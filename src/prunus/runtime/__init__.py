"""Running sparse networks on the CPU faster than dense ones."""

from prunus.runtime.choosing import LayerTiming, SpeedUp, sped_up, speed_up

__all__ = ["LayerTiming", "SpeedUp", "sped_up", "speed_up"]
