"""Tensors as 8-bit integers with a scale for each row."""

from __future__ import annotations

import torch

__all__ = ["LEVELS", "quantize_rows", "restore"]

LEVELS = 127
"""The largest magnitude of an integer: -128 is not used, so that the range is symmetric."""


def quantize_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tensor as integers and scales; the rows are the first dimension.

    Zeros are the integer 0. Each element differs from its integer times the scale of its row by
    half a scale at most.

    Args:
        tensor: Finite floating-point numbers, of one dimension or more.

    Returns:
        The integers from -127 to 127, as int8 in the shape of the tensor, and the scales in
        float32, above 0; infinity for a row whose numbers are too large for any.

    Example:
        >>> integers, scales = quantize_rows(torch.tensor([[1.0, 0.0, -0.5], [0.0, 0.0, 0.0]]))
        >>> integers.tolist(), (127 * scales).tolist()
        ([[127, 0, -64], [0, 0, 0]], [1.0, 127.0])
    """
    # In float64, where a scale times 127 is exact, and in rows that may be empty.
    matrix = tensor.detach().to(torch.float64).reshape(tensor.shape[0], -1)
    if not matrix.shape[1]:
        return matrix.to(torch.int8).reshape(tensor.shape), torch.ones(len(matrix))
    largest = matrix.abs().amax(dim=1)
    scales = (largest / LEVELS).to(torch.float32)
    # The smallest numbers of float32 are so far apart that the scale must be rounded up, or the
    # largest element would be more than half a step beyond 127 steps.
    too_small = scales.to(torch.float64) * (LEVELS + 0.5) < largest
    scales[too_small] = torch.nextafter(scales, torch.full_like(scales, torch.inf))[too_small]
    scales[largest == 0] = 1.0
    steps = (matrix / scales.to(torch.float64)[:, None]).round()
    integers = steps.clamp(-LEVELS, LEVELS).to(torch.int8)
    return integers.reshape(tensor.shape), scales


def restore(integers: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return integers times scales, computed in float32 or the type if that is float64.

    Args:
        integers: Integers of type int8.
        scales: The scale of each, or of each row; of any shape that broadcasts.
        dtype: The type of the result.

    Example:
        >>> restore(torch.tensor([2, -3], dtype=torch.int8), torch.tensor(0.5), torch.float32)
        tensor([ 1.0000, -1.5000])
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (integers.to(wide) * scales.to(wide)).to(dtype)
