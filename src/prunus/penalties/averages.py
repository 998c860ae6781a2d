"""Moving averages of gradient magnitudes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunus._utils.averages import update_averages_
from prunus._utils.batches import Batch, batches
from prunus._utils.devices import on_device
from prunus._utils.finiteness import finite_mask, finiteness

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
        ...     averages.update({"weight": gradient})
        >>> averages.tensors["weight"], averages.counts["weight"]
        (tensor([2.]), 3)
    """

    def __init__(self, smoothing: float, *, sharded: bool = False) -> None:
        self.smoothing = smoothing
        self._sharded = sharded
        self.tensors: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def update(
        self,
        gradients: Mapping[str, torch.Tensor],
        scale: torch.Tensor | float | None = None,
        measurable: torch.Tensor | bool | None = None,
    ) -> None:
        """Move the averages of tensors towards |gradient / scale|, where the gradient is finite.

        Called once a step, under ``torch.no_grad()``.

        Args:
            gradients: ∂L/∂w by name, or ``scale`` times that.
            scale: The factor that the gradients have been multiplied by.
            measurable: Whether the gradients may be used, which implies that they are finite; if
                not, they count as if they were not. A scalar on a device if the host does not
                know. Default None: not known.
        """
        for name, gradient in gradients.items():
            # A change of a hundredth would be lost to rounding in 16 bits.
            wide = torch.promote_types(gradient.dtype, torch.float32)
            average = self.tensors.get(name)
            self.tensors[name] = (
                torch.zeros_like(gradient, dtype=wide)
                if average is None
                else average.to(gradient.device, wide)
            )
            self.counts.setdefault(name, 0)
        flags = finiteness(list(gradients.values()), sharded=self._sharded, measurable=measurable)
        used = {name: f for name, f in zip(gradients, flags, strict=True) if f is not False}
        keys = []
        for name, flag in used.items():
            self.counts[name] += 1
            keys.append((self.counts[name], flag is True))
        for batch in batches(
            [gradients[name] for name in used],
            [self.tensors[name] for name in used],
            together=keys,
        ):
            count, known = keys[batch.indices[0]]
            self._update_batch(batch, scale, count, None if known else list(used.values()))

    def _update_batch(
        self,
        batch: Batch,
        scale: torch.Tensor | float | None,
        count: int,
        finite: Sequence[bool | torch.Tensor] | None,
    ) -> None:
        """Move the averages of a batch.

        Args:
            batch: Gradients and averages.
            scale: The factor that the gradients have been multiplied by.
            count: The number of gradients in the averages, this one included.
            finite: Whether each of all gradients is finite, by :func:`finiteness`; None if all of
                the batch are.
        """
        wide = batch.operands[1][0].dtype
        if finite is None:
            (gradient,) = batch.load(0, dtype=wide)
        else:
            gradient, average = batch.load(0, 1, dtype=wide)
        # In place where it is a copy.
        magnitude = gradient.abs_() if batch.packed else gradient.abs()
        if scale is not None:
            magnitude.div_(on_device(scale, magnitude.device))
        if finite is not None:
            magnitude = torch.where(finite_mask(batch, finite), magnitude, average)
        update_averages_(
            batch.operands[1], batch.views(magnitude), smoothing=self.smoothing, count=count
        )
