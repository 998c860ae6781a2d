"""The relevance penalty, its irrelevance coefficients, strengths and ways of application."""

from prunus.penalties.coefficients import (
    CautiousRelevance,
    Coefficient,
    ConstantRelevance,
    ExponentialRelevance,
    LinearRelevance,
)
from prunus.penalties.loss_application import PenaltyTerm
from prunus.penalties.relevance import Apply, RelevancePenalty
from prunus.penalties.strengths import (
    AutomaticStrength,
    ConstantStrength,
    LearningRateStrength,
    LinearDecayStrength,
    Strength,
    StrengthStep,
    UpdateStrength,
)

__all__ = [
    "Apply",
    "AutomaticStrength",
    "CautiousRelevance",
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
    "StrengthStep",
    "UpdateStrength",
]
