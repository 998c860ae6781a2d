"""The penalty added to the gradient: ∂R/∂w in closed form, just before the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunus._utils.batches import Batch, batches
from prunus.masks import clear_batch_
from prunus.penalties.application import Application, TensorStep

__all__ = ["GradientApplication"]

_GRADIENT, _WEIGHT, _BASIS, _MASK = range(4)
"""The operands of a batch; the mask is there if weights were removed."""


class GradientApplication(Application):
    """Adds ∂R/∂w to ``.grad``: one backward pass, and no state."""

    def before_step(self, steps: Sequence[TensorStep]) -> None:
        """Add ∂R/∂w to the gradients, and zero them where the masks are False.

        One pass over memory, with scratch memory for one batch. Padding rows are left alone.
        """
        unmasked = [step for step in steps if step.mask is None]
        if unmasked:
            self._edit(unmasked)
        if len(unmasked) < len(steps):
            self._edit([step for step in steps if step.mask is not None])

    def _edit(self, steps: Sequence[TensorStep]) -> None:
        """Edit gradients that all have a mask, or none of which has one."""
        unit = self.formula.units(
            [step.basis for step in steps],
            steps[0].basis_scale,
            [step.basis_mean for step in steps],
        )
        padding = [
            (step.gradient[row], step.gradient[row].clone())
            for step in steps
            if (row := step.tensor.local_padding_row) is not None
        ]
        masks = [step.mask for step in steps if step.mask is not None]
        scratch: torch.Tensor | None = None
        for batch in batches(
            [step.gradient for step in steps],
            [step.weight for step in steps],
            [step.basis for step in steps],
            *([masks] if masks else []),
            together=[step.strength for step in steps],
            pack=self.formula.batched,
        ):
            # The coefficients of one chunk are the scratch memory for those of the next.
            basis = batch.operands[_BASIS][0]
            reused = None if scratch is None or not _is_alike(scratch, basis) else scratch
            c = self.batch_coefficients(
                batch, steps, unit(batch), basis=_BASIS, weight=_WEIGHT, out=reused
            )
            scratch = None if batch.packed else c
            step = steps[batch.indices[0]]
            self._add(batch, c, step)
            if masks:
                clear_batch_(batch, _GRADIENT, _MASK)
        for padding_row, before in padding:
            padding_row.copy_(before)

    def _add(self, batch: Batch, coefficients: torch.Tensor, step: TensorStep) -> None:
        """Add ∂R/∂w to the gradients of a batch."""
        factor, power = step.strength, self.formula.power
        c = coefficients
        # The optimizer divides the whole gradient by the loss scale.
        if isinstance(step.loss_scale, torch.Tensor):
            # With the strength, because it may be above the largest number of float16.
            c, factor = c * (step.loss_scale.to(c.device) * factor), 1.0
        elif step.loss_scale is not None:
            factor *= step.loss_scale
        factor *= power
        factors = batch.operands[_WEIGHT]
        if power == 1:
            (weights,) = batch.load(_WEIGHT)
            factors = batch.views(self.formula.factors(weights))
        torch._foreach_addcmul_(batch.operands[_GRADIENT], batch.views(c), factors, value=factor)


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
