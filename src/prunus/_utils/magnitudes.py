"""Sums and means of magnitudes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunus._utils.batches import grouped
from prunus._utils.chunks import chunks

__all__ = ["magnitude_sum", "magnitude_sums", "mean_magnitudes_of"]


def magnitude_sum(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return Σ|x| over a tensor, a scalar.

    Args:
        tensor: x.
        dtype: The type of the sum.

    Example:
        >>> magnitude_sum(torch.tensor([1.0, -2.0]), torch.float64)
        tensor(3., dtype=torch.float64)
    """
    return magnitude_sums([tensor], dtype)[0]


def magnitude_sums(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return Σ|x| over each tensor.

    Args:
        tensors: The tensors, on any devices.
        dtype: The type of the sums.

    Example:
        >>> magnitude_sums([torch.tensor([1.0, -2.0]), torch.tensor([-4.0])], torch.float32)
        [tensor(3.), tensor(4.)]
    """

    def sums(group: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        if group[0].device.type == "cpu":
            return [_sum_on_cpu(tensor, dtype) for tensor in group]
        return torch._foreach_norm(group, 1, dtype)

    return grouped(tensors, sums)


def _sum_on_cpu(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # The norm of order 1 takes five times as long as the two operations.
    sums = [chunk.abs().sum(dtype=dtype) for (chunk,) in chunks(tensor)]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def mean_magnitudes_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the mean of |x| over each tensor, in float32 at least.

    Example:
        >>> mean_magnitudes_of([torch.tensor([1.0, -2.0]), torch.tensor([4.0]).half()])
        [tensor(1.5000), tensor(4.)]
    """

    def means(group: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        # The sum of a float16 tensor's magnitudes easily exceeds its range.
        sums = magnitude_sums(group, torch.promote_types(group[0].dtype, torch.float32))
        return torch._foreach_div(sums, [float(max(1, tensor.numel())) for tensor in group])

    return grouped(tensors, means)
