"""The counts of weights that an allocation depends on."""

from __future__ import annotations

import math

from prunus.allocation import TensorCounts
from prunus.selection import Selection

__all__ = ["full_counts", "least_kept"]


def full_counts(selection: Selection, min_density: float) -> list[TensorCounts]:
    """Return what an allocation depends on while all weights are kept, without patterns."""
    return [
        TensorCounts(
            name=name,
            shape=tuple(tensor.parameter.shape),
            prunable=tensor.prunable,
            kept=tensor.prunable,
            least=least_kept(tensor.prunable, min_density),
        )
        for name, tensor in selection.items()
    ]


def least_kept(prunable: int, min_density: float) -> int:
    """Return how many of a tensor's ``prunable`` weights ``min_density`` keeps.

    Example:
        >>> least_kept(100, 0.07), least_kept(100, 1e-4)
        (7, 1)
    """
    # Slightly less, because 0.07 · 100 is 7.000000000000001 in floating point.
    return math.ceil(min_density * prunable - 1e-9)
