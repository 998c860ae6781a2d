"""Growth: rules by which removed weights may return."""

from prunus.growth.alternating import AlternatingGrowth
from prunus.growth.base import Growth, GrowthRule, MaskEditor, NoGrowth
from prunus.growth.exchange import GradientGrowth, RandomGrowth
from prunus.growth.soft import SoftGrowth

__all__ = [
    "AlternatingGrowth",
    "GradientGrowth",
    "Growth",
    "GrowthRule",
    "MaskEditor",
    "NoGrowth",
    "RandomGrowth",
    "SoftGrowth",
]
