"""Moving averages of gradient magnitudes."""

from __future__ import annotations

import torch

from prunus._utils.averages import update_average_
from prunus._utils.chunks import chunks
from prunus._utils.finiteness import finiteness

__all__ = ["MagnitudeAverages"]


class MagnitudeAverages:
    """A moving average of |∂L/∂w| for each tensor.

    Each is the plain mean of the first 1 / (1 − smoothing) gradients, so that the first one does
    not weigh more than others, and the exponential moving average from there on.

    A gradient with NaN or infinity would stay in an average for ever, so it is left out. On the CPU
    it is not counted; on an accelerator, whose host does not wait for the answer, and in a shard,
    whose other shards may be finite, it counts as one that equals the average.

    Args:
        smoothing: The weight of the past, from 0 to below 1; 0 for no averages.
        sharded: Whether other processes hold other shards of the tensors. Default False.

    Attributes:
        tensors: The averages by name, in float32 at least.
        counts: How many gradients are in each of them. It is 0 while there is none, and the
            average is then 0 too.

    Example:
        >>> averages = MagnitudeAverages(smoothing=0.5)
        >>> for gradient in (torch.tensor([4.0]), torch.tensor([-2.0]), torch.tensor([1.0])):
        ...     averages.update("weight", gradient)
        >>> averages.tensors["weight"], averages.counts["weight"]
        (tensor([2.]), 3)
    """

    def __init__(self, smoothing: float, *, sharded: bool = False) -> None:
        self.smoothing = smoothing
        self._sharded = sharded
        self.tensors: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def update(
        self, name: str, gradient: torch.Tensor, scale: torch.Tensor | float | None = None
    ) -> None:
        """Move the average of a tensor towards |gradient / scale|, if the gradient is finite.

        Called once a step, under ``torch.no_grad()``.

        Args:
            name: The tensor's name.
            gradient: ∂L/∂w, or ``scale`` times that.
            scale: The factor that the gradient has been multiplied by.
        """
        # A change of a hundredth would be lost to rounding in 16 bits.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        average = self.tensors.get(name)
        average = self.tensors[name] = (
            torch.zeros_like(gradient, dtype=wide)
            if average is None
            else average.to(gradient.device, wide)
        )
        count = self.counts.setdefault(name, 0)
        finite = finiteness(gradient, sharded=self._sharded)
        if finite is False:
            return
        self.counts[name] = count + 1
        if isinstance(scale, torch.Tensor):
            scale = scale.to(gradient.device)
        for g, a in chunks(gradient, average):
            magnitude = g.abs().to(wide)
            if scale is not None:
                magnitude.div_(scale)
            if isinstance(finite, torch.Tensor):
                magnitude = torch.where(finite, magnitude, a)
            update_average_(a, magnitude, smoothing=self.smoothing, count=count + 1)
