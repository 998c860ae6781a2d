"""The report of a compaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunus._utils.text_table import text_table

__all__ = ["CompactionReport", "ResizedTensor"]

_MOST_REASONS = 5
"""The most reasons for kept units that are printed."""


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

    ``str()`` of it is a table with a row for each smaller tensor.

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

    def __str__(self) -> str:
        head = (
            f"{self.parameters_before:,} parameters, {self.parameters:,} without dead units; "
            f"outputs differ by at most {self.error:.1g} of the largest"
        )
        rows = [[each.name, _shape(each.before), _shape(each.after)] for each in self.resized]
        table = [text_table(["tensor", "before", "after"], rows)] if rows else []
        notes = [f"kept: {reason}" for reason in self.protected[:_MOST_REASONS]]
        if (more := len(self.protected) - _MOST_REASONS) > 0:
            notes.append(f"kept for other reasons: {more}")
        return "\n".join([head, *table, *notes])


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
