"""The penalty added to the gradient: ∂R/∂w in closed form, just before the optimizer's step."""

from __future__ import annotations

import torch

from prunus._utils.chunks import CPU_CHUNK, bits, chunks
from prunus.penalties.application import Application, TensorStep

__all__ = ["GradientApplication"]


class GradientApplication(Application):
    """Adds ∂R/∂w to ``.grad``: one backward pass, and no state."""

    def before_step(self, step: TensorStep) -> None:
        """Add ∂R/∂w to the gradient, and zero it where the mask is False.

        One pass over memory, with scratch memory for one chunk. The padding row is left alone.
        """
        formula, gradient, mask, scale = self.formula, step.gradient, step.mask, step.basis_scale
        padding_row = step.tensor.local_padding_row
        factor = step.strength
        if step.loss_scale is not None:
            factor *= step.loss_scale  # the optimizer divides the whole gradient by it
        factor *= formula.power
        # The same as below for a tensor of one chunk, with fewer operations: in a small network
        # this is called every millisecond.
        plain = mask is None and padding_row is None and scale is None and step.basis is gradient
        if plain and step.basis_mean is None and gradient.numel() <= CPU_CHUNK:
            factors = formula.factors(step.weight)
            c = formula.chunk_coefficients(gradient, step.weight)
            gradient.addcmul_(c, factors, value=factor)
            return
        padding = None if padding_row is None else gradient[padding_row].clone()
        unit = formula.coefficient.unit(
            step.basis, 1.0 if scale is None else scale, mean=step.basis_mean
        )
        operands = (gradient, step.weight, step.basis)
        scratch: torch.Tensor | None = None
        for g, w, basis, *masks in chunks(*operands) if mask is None else chunks(*operands, mask):
            # The coefficients of one chunk are the scratch memory for those of the next.
            reused = None if scratch is None or scratch.shape != basis.shape else scratch
            scratch = formula.chunk_coefficients(basis, w, unit=unit, out=reused)
            g.addcmul_(scratch, formula.factors(w), value=factor)
            for mask_chunk in masks:
                bits(g).mul_(mask_chunk)
        if padding is not None:
            gradient[padding_row] = padding
