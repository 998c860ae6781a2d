"""The decoupled penalty: weights are shrunk after the step, past momentum and adaptive scaling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from prunus._utils.batches import batches
from prunus.penalties.application import Application, Strengths, TensorStep, clear_gradients_
from prunus.penalties.formula import PenaltyFormula, Power
from prunus.selection import PrunableTensor, Selection

__all__ = ["DecoupledApplication", "shrink_", "shrink_all_"]


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

    def before_step(self, steps: Sequence[TensorStep]) -> None:
        """Compute the coefficients of tensors, and zero the gradients of removed weights."""
        self._pending += [step.tensor for step in steps]
        unit = self.formula.units(
            [step.basis for step in steps],
            steps[0].basis_scale,
            [step.basis_mean for step in steps],
        )
        for batch in batches(
            [self._buffer(step) for step in steps],
            [step.basis for step in steps],
            [step.weight for step in steps],
            pack=self.formula.batched,
        ):
            c = self.batch_coefficients(
                batch, steps, unit(batch), basis=1, weight=2, out=batch.operands[0][0]
            )
            if batch.packed:
                # They stay packed, which takes no copies.
                for index, view in zip(batch.indices, batch.views(c), strict=True):
                    basis = steps[index].basis
                    name = steps[index].tensor.name
                    self._coefficients[name] = view.as_strided(basis.shape, basis.stride())
            else:
                batch.store([0], [c])
        for step in steps:
            row = step.tensor.local_padding_row
            if row is not None:
                self._coefficients[step.tensor.name][row] = 0.0
        clear_gradients_(steps)

    def _buffer(self, step: TensorStep) -> torch.Tensor:
        """Return the tensor that the coefficients of a step's tensor are written to."""
        name, basis = step.tensor.name, step.basis
        buffer = self._coefficients.get(name)
        if buffer is None or not _is_alike(buffer, basis):
            buffer = self._coefficients[name] = torch.empty_like(basis)
        return buffer

    def after_step(self) -> None:
        """Shrink the tensors that took part in the step."""
        if not self._pending:  # most steps of a strength that acts in some of them only
            return
        strengths, power = self.strengths(), self.formula.power
        exact: list[PrunableTensor] = []
        rounded: list[PrunableTensor] = []
        for tensor in self._pending:
            (rounded if self.needs_remainder(tensor.parameter) else exact).append(tensor)
        for tensors in filter(None, (exact, rounded)):
            weights = [t.weight if self._sharded else t.parameter for t in tensors]
            remainders = [self._remainder(t.name, t.weight) for t in tensors if tensors is rounded]
            shrink_all_(
                weights,
                [self._coefficients[t.name] for t in tensors],
                [strengths[t.name] for t in tensors],
                power,
                remainders,
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
    remainders = [] if remainder is None else [remainder]
    shrink_all_([weight], [coefficients], [strength], power, remainders)


@torch.no_grad()
def shrink_all_(
    weights: Sequence[torch.Tensor],
    coefficients: Sequence[torch.Tensor],
    strengths: Sequence[float],
    power: Power,
    remainders: Sequence[torch.Tensor] = (),
) -> None:
    """Apply :func:`shrink_` to several tensors.

    Args:
        weights: w of each.
        coefficients: c of each.
        strengths: γ of each.
        power: 2 for Σ c·w², 1 for Σ c·|w|.
        remainders: The remainder of each, or none.
    """
    detached = [weight.detach() for weight in weights]
    extra = [remainders] if remainders else []
    for batch in batches(detached, coefficients, *extra, together=strengths):
        strength = strengths[batch.indices[0]]
        if remainders:
            (w,), (c,), (r,) = batch.load(0), batch.load(1), batch.load(2)
            _shrink_with_remainder_(w, c, strength, power, r)
            if batch.packed:
                batch.store([0], [w])
                batch.store([2], [r])
            continue
        w_all, c_all = batch.operands
        if power == 2 and strength <= 0.5:
            # Not past zero, because c is at most 1.
            torch._foreach_addcmul_(w_all, w_all, c_all, value=-2.0 * strength)
        elif power == 2:
            (c,) = batch.load(1)
            shrinks = batch.views((c * (2.0 * strength)).clamp_max_(1.0))
            torch._foreach_addcmul_(w_all, w_all, shrinks, value=-1.0)
        else:
            w, c = batch.load(0, 1)
            step = c * strength
            torch._foreach_sub_(w_all, batch.views(torch.clamp(w, -step, step)))


def _shrink_with_remainder_(
    weight: torch.Tensor,
    coefficients: torch.Tensor,
    strength: float,
    power: Power,
    remainder: torch.Tensor,
) -> None:
    """Apply :func:`shrink_` to a block with a remainder, in place."""
    exact = weight + remainder
    step = coefficients.to(exact.dtype) * (strength * power)
    if power == 2:
        step.clamp_max_(1.0).mul_(exact)
    else:
        step = torch.minimum(torch.maximum(exact, -step), step)
    # The step is subtracted from the remainder, whose type can hold it; from there the weight
    # receives as much as its own type can hold. A weight that is NaN or infinite leaves its
    # remainder as it is, so that it can be restored from a copy.
    step = torch.where((exact - step).isfinite(), step, 0.0)
    before = weight.clone()
    weight.copy_(weight + remainder.sub_(step))
    remainder.sub_((weight - before.to(remainder.dtype)).nan_to_num_(0.0, 0.0, 0.0))


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same type, device, shape and strides."""
    return (one.dtype, one.device, one.shape, one.stride()) == (
        other.dtype,
        other.device,
        other.shape,
        other.stride(),
    )
