"""Small tensor functions that the analysis and the rules share."""

from __future__ import annotations

import torch

__all__ = ["any_along", "equal_up_to_rounding", "expand_along", "sum_to_shape"]


def equal_up_to_rounding(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return where two tensors are equal within rounding, as averages of one constant are."""
    if not first.is_floating_point():
        return first == second
    close = (first - second).abs() <= 16 * torch.finfo(first.dtype).eps * second.abs()
    return (first == second) | close


def any_along(mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Return, for each position of a dimension, whether the mask is True anywhere at it.

    Example:
        >>> any_along(torch.tensor([[True, False], [False, False]]), 0).tolist()
        [True, False]
    """
    return mask.movedim(dim, 0).flatten(1).any(1) if mask.dim() > 1 else mask


def expand_along(vector: torch.Tensor, dim: int, shape: torch.Size) -> torch.Tensor:
    """Return a vector expanded to a shape, its elements along one dimension.

    Example:
        >>> expand_along(torch.tensor([1, 2]), 0, torch.Size([2, 3])).tolist()
        [[1, 1, 1], [2, 2, 2]]
    """
    sizes = [1] * len(shape)
    sizes[dim] = -1
    return vector.view(sizes).expand(shape)


def sum_to_shape(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return which elements of a shape are broadcast to an element where the mask is True.

    Example:
        >>> sum_to_shape(torch.tensor([[True, False], [True, False]]), torch.Size([2])).tolist()
        [True, False]
    """
    return mask.float().sum_to_size(shape) > 0
