"""Tolerances for the outputs of a compact model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

__all__ = ["OUTPUT_TOLERANCE", "output_tolerance"]

OUTPUT_TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""The largest accepted difference of an output, relative to the largest magnitude, by type."""


def output_tolerance(tensors: Iterable[torch.Tensor]) -> float:
    """Return the tolerance for the least precise type among tensors, 0 for other types.

    Example:
        >>> output_tolerance([torch.ones(1), torch.ones(1, dtype=torch.bfloat16)])
        0.05
    """
    return max((OUTPUT_TOLERANCE.get(tensor.dtype, 0.0) for tensor in tensors), default=0.0)
