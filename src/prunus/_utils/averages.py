"""The moving average that the penalty and the scores share."""

from __future__ import annotations

import torch

__all__ = ["update_average_", "update_averages_"]


def update_average_(
    average: torch.Tensor, value: torch.Tensor, *, smoothing: float, count: int
) -> None:
    """Move an average towards a value, in place.

    It is the plain mean of the first 1 / (1 − smoothing) values, so that the first one does not
    weigh more than others, and the exponential moving average from there on.

    Args:
        average: The average of the values before; its content does not matter if there were none,
            as long as it is finite.
        value: The next value, of the same type.
        smoothing: The weight of the past, from 0 to below 1.
        count: The number of values, this one included.

    Example:
        >>> average = torch.zeros(1)
        >>> for count, value in enumerate((4.0, 2.0, 1.0), start=1):
        ...     update_average_(average, torch.tensor([value]), smoothing=0.5, count=count)
        >>> average
        tensor([2.])
    """
    average.lerp_(value, _weight(smoothing, count))


def update_averages_(
    averages: list[torch.Tensor],
    values: list[torch.Tensor],
    *,
    smoothing: float,
    count: int,
) -> None:
    """Move several averages towards their values, in place, as :func:`update_average_` does.

    Example:
        >>> averages = [torch.zeros(1), torch.ones(2)]
        >>> update_averages_(averages, [torch.ones(1), torch.zeros(2)], smoothing=0.75, count=9)
        >>> averages
        [tensor([0.2500]), tensor([0.7500, 0.7500])]
    """
    torch._foreach_lerp_(averages, values, _weight(smoothing, count))


def _weight(smoothing: float, count: int) -> float:
    return max(1.0 - smoothing, 1.0 / count)
