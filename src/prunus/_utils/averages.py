"""The moving average that the penalty and the scores share."""

from __future__ import annotations

import torch

__all__ = ["update_average_"]


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
    average.lerp_(value, max(1.0 - smoothing, 1.0 / count))
