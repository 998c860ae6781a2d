"""The relevance penalty, its irrelevance coefficients and its strengths."""

from prunus.penalties.coefficients import (
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    LinearRelevance,
)
from prunus.penalties.relevance import Apply, PenaltyTerm, RelevancePenalty
from prunus.penalties.strengths import (
    ConstantStrength,
    LearningRateStrength,
    LinearDecayStrength,
    Strength,
)

__all__ = [
    "Apply",
    "Coefficient",
    "ConstantRelevance",
    "ConstantStrength",
    "ExponentialRelevance",
    "LearningRateStrength",
    "LinearDecayStrength",
    "LinearRelevance",
    "PenaltyTerm",
    "RelevancePenalty",
    "Strength",
]
