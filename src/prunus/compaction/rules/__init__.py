"""Rules for operators: which units a call couples, and which of its inputs its outputs need.

Each rule class names its operators and the calls of them that it supports. An operator may have a
rule for some of its calls only: :class:`Unknown` applies to all others.
"""

from __future__ import annotations

from prunus.compaction.graph import Call
from prunus.compaction.rules.base import NoEffect, Rule, Unknown
from prunus.compaction.rules.elementwise import (
    ConstantFill,
    Division,
    Elementwise,
    ElementwiseExtremum,
    GatedLinearUnit,
    Multiplication,
    ParametricReLU,
)
from prunus.compaction.rules.embedding import Embedding
from prunus.compaction.rules.layers import WeightedLayer
from prunus.compaction.rules.layout import Concatenation, Layout, Padding, Stacking
from prunus.compaction.rules.normalization import BatchNorm, GroupNorm, LayerNorm
from prunus.compaction.rules.products import MatrixProduct, ScaledDotProductAttention
from prunus.compaction.rules.reductions import (
    MeanReduction,
    Pooling,
    Reduction,
    Resampling,
    SumReduction,
)

__all__ = ["RULES", "Rule", "rule_for"]

RULES: tuple[type[Rule], ...] = (
    NoEffect,
    Elementwise,
    ElementwiseExtremum,
    Multiplication,
    Division,
    ConstantFill,
    GatedLinearUnit,
    ParametricReLU,
    Layout,
    Padding,
    Concatenation,
    Stacking,
    WeightedLayer,
    MatrixProduct,
    ScaledDotProductAttention,
    BatchNorm,
    LayerNorm,
    GroupNorm,
    Embedding,
    Reduction,
    SumReduction,
    MeanReduction,
    Pooling,
    Resampling,
    Unknown,
)
"""All rules. The first one that applies to a call is used: a matrix product is a layer where its
second factor is fixed, and the last rule applies to every call."""


def rule_for(call: Call) -> Rule:
    """Return the rule of a call."""
    return next(rule for rule in RULES if rule.applies(call))(call)
