"""The report of a compaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CompactionReport", "ResizedTensor"]


@dataclass(frozen=True)
class ResizedTensor:
    """A parameter or buffer that became smaller.

    Attributes:
        name: Its first name in the model.
        before: The original shape.
        after: The new shape.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class CompactionReport:
    """The changes that :func:`compact` made to a model.

    Attributes:
        resized: The parameters and buffers that became smaller.
        new_biases: The layers that received a bias, to hold folded constants.
        selecting_layers: The layers that now select some of their input features.
        protected: Why units were kept even if dead, such as operators without a rule, statistics
            that depend on every feature, or sizes that the code has hard-coded.
        replaced_types: The new type of each module whose type changed, by the module's name.
        changed_attributes: The integer attributes that changed, by module and attribute name.
        parameters_before: The number of parameters of the original model; tied ones count once.
        parameters: The number of parameters of the compact model.
        error: The largest difference of an output on the probe inputs, relative to the largest
            magnitude.
    """

    resized: tuple[ResizedTensor, ...]
    new_biases: tuple[str, ...]
    selecting_layers: tuple[str, ...]
    protected: tuple[str, ...]
    replaced_types: Mapping[str, str]
    changed_attributes: Mapping[str, Mapping[str, int]]
    parameters_before: int
    parameters: int
    error: float
