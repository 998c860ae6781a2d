"""Moving averages of gradient magnitudes."""

from __future__ import annotations

import torch

from prunus._utils.averages import update_average_
from prunus._utils.chunks import chunks

__all__ = ["MagnitudeAverages"]


class MagnitudeAverages:
    """A moving average of |∂L/∂w| for each tensor.

    Each is the plain mean of the first 1 / (1 − smoothing) gradients, so that the first one does
    not weigh more than others, and the exponential moving average from there on.

    Args:
        smoothing: The weight of the past, from 0 to below 1; 0 for no averages.

    Attributes:
        tensors: The averages by name, in float32 at least.
        counts: How many gradients each of them has seen.

    Example:
        >>> averages = MagnitudeAverages(smoothing=0.5)
        >>> for gradient in (torch.tensor([4.0]), torch.tensor([-2.0]), torch.tensor([1.0])):
        ...     averages.update("weight", gradient)
        >>> averages.tensors["weight"], averages.counts["weight"]
        (tensor([2.]), 3)
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing
        self.tensors: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def update(
        self, name: str, gradient: torch.Tensor, scale: torch.Tensor | float | None = None
    ) -> None:
        """Move the average of a tensor towards |gradient / scale|.

        Called once a step, under ``torch.no_grad()``.

        Args:
            name: The tensor's name.
            gradient: ∂L/∂w, or ``scale`` times that.
            scale: The factor that the gradient has been multiplied by.
        """
        count = self.counts[name] = self.counts.get(name, 0) + 1
        # A change of a hundredth would be lost to rounding in 16 bits.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        average = self.tensors.get(name)
        average = (
            torch.zeros_like(gradient, dtype=wide)
            if average is None
            else average.to(gradient.device, wide)
        )
        if isinstance(scale, torch.Tensor):
            scale = scale.to(gradient.device)
        for g, a in chunks(gradient, average):
            magnitude = g.abs().to(wide)
            if scale is not None:
                magnitude.div_(scale)
            update_average_(a, magnitude, smoothing=self.smoothing, count=count)
        self.tensors[name] = average
