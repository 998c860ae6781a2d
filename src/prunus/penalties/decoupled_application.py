"""The decoupled penalty: weights are shrunk after the step, past momentum and adaptive scaling."""

from __future__ import annotations

from typing import ClassVar

import torch

from prunus._utils.chunks import chunks
from prunus.masks import clear_
from prunus.penalties.application import Application, Strengths, TensorStep
from prunus.penalties.formula import PenaltyFormula, Power
from prunus.selection import PrunableTensor, Selection

__all__ = ["DecoupledApplication", "shrink_"]


class DecoupledApplication(Application):
    """Subtracts ∂R/∂w from the weights after the step.

    The coefficients are computed before the step, because some optimizers overwrite the gradient
    during it. A shrink is far smaller than the resolution of bfloat16 or float16, so each 16-bit
    tensor has a float32 remainder that keeps what rounding would lose.
    """

    exact_in_16_bits: ClassVar[bool] = True

    def __init__(self, formula: PenaltyFormula, selection: Selection, strengths: Strengths) -> None:
        super().__init__(formula, selection, strengths)
        self._sharded = selection.process_group.sharded
        self._coefficients: dict[str, torch.Tensor] = {}
        self._pending: list[PrunableTensor] = []

    def begin(self) -> None:
        """Drop the shrinks that an earlier call of the closure, or a skipped step, has left."""
        self._pending.clear()

    def before_step(self, step: TensorStep) -> None:
        """Compute the coefficients of a tensor, and zero the gradient of removed weights."""
        tensor, basis = step.tensor, step.basis
        buffer = self._coefficients.get(tensor.name)
        if buffer is None or not _is_alike(buffer, basis):
            buffer = self._coefficients[tensor.name] = torch.empty_like(basis)
        self.formula.coefficients(
            basis,
            tensor.local_padding_row,
            step.basis_scale,
            weight=step.weight,
            mean=step.basis_mean,
            out=buffer,
        )
        self._pending.append(tensor)
        if step.mask is not None:
            clear_(step.gradient, step.mask)

    def after_step(self) -> None:
        """Shrink the tensors that took part in the step."""
        if not self._pending:  # most steps of a strength that acts in some of them only
            return
        strengths, power = self.strengths(), self.formula.power
        for tensor in self._pending:
            weight = tensor.weight if self._sharded else tensor.parameter
            shrink_(
                weight,
                self._coefficients[tensor.name],
                strengths[tensor.name],
                power,
                self._remainder(tensor.name, weight) if self.needs_remainder(weight) else None,
            )

    def needs_remainder(self, weight: torch.Tensor) -> bool:
        """Return whether a weight's type is too short to hold a single shrink."""
        return weight.element_size() < 4

    def _remainder(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the remainder of a tensor, on the tensor's device."""
        remainder = self.remainders.get(name)
        if remainder is None:
            remainder = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
        self.remainders[name] = remainder.to(weight.device)
        return self.remainders[name]


@torch.no_grad()
def shrink_(
    weight: torch.Tensor,
    coefficients: torch.Tensor,
    strength: float,
    power: Power,
    remainder: torch.Tensor | None = None,
) -> None:
    """Apply w ← w − ∂R/∂w in place, never past zero.

    Args:
        weight: w.
        coefficients: c, of the same shape, from 0 to 1.
        strength: γ.
        power: 2 for Σ c·w², 1 for Σ c·|w|.
        remainder: The part of w that its type cannot hold, in float32. The weight is then the sum
            of both, so that many shrinks too small for its own type add up.

    Example:
        >>> weight = torch.tensor([2.0, -0.25])
        >>> shrink_(weight, torch.ones(2), strength=0.5, power=1)
        >>> weight
        tensor([1.5000, 0.0000])
    """
    if remainder is not None:
        _shrink_with_remainder_(weight, coefficients, strength, power, remainder)
        return
    for w, c in chunks(weight.detach(), coefficients):
        if power == 2 and strength <= 0.5:
            w.addcmul_(w, c, value=-2.0 * strength)  # not past zero, because c is at most 1
        elif power == 2:
            w.addcmul_(w, (c * (2.0 * strength)).clamp_max_(1.0), value=-1.0)
        else:
            step = c * strength
            w.sub_(torch.minimum(torch.maximum(w, -step), step))


def _shrink_with_remainder_(
    weight: torch.Tensor,
    coefficients: torch.Tensor,
    strength: float,
    power: Power,
    remainder: torch.Tensor,
) -> None:
    for w, c, r in chunks(weight.detach(), coefficients, remainder):
        exact = w + r
        step = c.to(exact.dtype) * (strength * power)
        if power == 2:
            step.clamp_max_(1.0).mul_(exact)
        else:
            step = torch.minimum(torch.maximum(exact, -step), step)
        # The step is subtracted from the remainder, whose type can hold it; from there the weight
        # receives as much as its own type can hold. A weight that is NaN or infinite leaves its
        # remainder as it is, so that it can be restored from a copy.
        step = torch.where((exact - step).isfinite(), step, 0.0)
        before = w.clone()
        w.copy_(w + r.sub_(step))
        r.sub_((w - before.to(r.dtype)).nan_to_num_(0.0, 0.0, 0.0))


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same type, device, shape and strides."""
    return (one.dtype, one.device, one.shape, one.stride()) == (
        other.dtype,
        other.device,
        other.shape,
        other.stride(),
    )
