"""The interface of the ways to apply the penalty: what each does before and after a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from prunus._utils.batches import Batch
from prunus.masks import clear_all_
from prunus.penalties.formula import PenaltyFormula
from prunus.selection import PrunableTensor, Selection

__all__ = ["Application", "Strengths", "TensorStep", "clear_gradients_"]

Strengths = Callable[[], Mapping[str, float]]
"""Returns γ of each tensor at the moment of the call."""


@dataclass(slots=True)
class TensorStep:
    """One tensor in one step, after backward and before the optimizer moves it.

    All tensors are those that this process holds: whole, or its shard.

    Attributes:
        tensor: The prunable tensor.
        weight: Its values.
        gradient: Its gradient, to be edited in place.
        strength: γ.
        mask: True or 1 where a weight is kept, in a form that ``clear_all_`` accepts; None if the
            tensor has lost no weight.
        loss_scale: The factor that a gradient scaler has multiplied the loss by and that the
            optimizer divides out within its step; None if there is none.
        basis: The values that the coefficients are computed from: the gradient, or a moving average
            of its magnitudes.
        basis_scale: The factor that ``basis`` has been multiplied by; None for 1.
        basis_mean: The mean magnitude of ``basis`` over all shards; None if it is the whole tensor,
            or the coefficient does not need it.
        measurable: Whether the coefficients can be computed; where they cannot they count as 0. A
            scalar on a device, or None if they can.
    """

    tensor: PrunableTensor
    weight: torch.Tensor
    gradient: torch.Tensor
    strength: float
    mask: torch.Tensor | None
    loss_scale: torch.Tensor | float | None
    basis: torch.Tensor
    basis_scale: torch.Tensor | float | None
    basis_mean: torch.Tensor | None
    measurable: torch.Tensor | None = None


class Application(ABC):
    """A way to apply the penalty to the tensors of one optimizer, and its state.

    A subclass that keeps its defaults applies nothing after the step and keeps nothing.

    Args:
        formula: The penalty without its strength.
        selection: The tensors it is applied to.
        strengths: Returns γ of each tensor at the moment of the call.

    Attributes:
        remainders: The float32 remainders of 16-bit tensors, if the subclass keeps any.
    """

    in_loss: ClassVar[bool] = False
    """Whether the caller adds the penalty to the loss, so that ``.grad`` includes its gradient."""

    supports_smoothing: ClassVar[bool] = True
    """Whether the coefficients can be those of a moving average."""

    exact_in_16_bits: ClassVar[bool] = False
    """Whether a shrink too small for a 16-bit weight is kept instead of rounded off."""

    def __init__(self, formula: PenaltyFormula, selection: Selection, strengths: Strengths) -> None:
        self.formula = formula
        self.selection = selection
        self.strengths = strengths
        self.remainders: dict[str, torch.Tensor] = {}

    def begin(self) -> None:  # noqa: B027  # optional for subclasses
        """Prepare for the gradients of a step; with a closure, of each call of it."""

    @abstractmethod
    def before_step(self, steps: Sequence[TensorStep]) -> None:
        """Edit the gradients of tensors whose strength is above 0.

        Called once a step, under ``torch.no_grad()``, with tensors that have the same loss scale,
        scale of the basis, and measurability. Where the mask is False the gradient must become 0.
        """

    def after_step(self) -> None:  # noqa: B027  # optional for subclasses
        """Edit the weights once the optimizer has moved them."""

    def batch_coefficients(
        self,
        batch: Batch,
        steps: Sequence[TensorStep],
        unit: torch.Tensor | float,
        *,
        basis: int,
        weight: int,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the coefficients of a batch, as one block.

        Args:
            batch: The batch.
            steps: All that were batched.
            unit: The coefficient's unit.
            basis: The number of the operand that the coefficients are computed from.
            weight: The number of the operand with the weights.
            out: Where to write those of a single tensor; they may be somewhere else all the same.
        """
        formula, w = self.formula, None
        if not batch.packed:
            g, w = batch.operands[basis][0], batch.operands[weight][0]
        elif formula.needs_weight:
            g, w = batch.load(basis, weight)
        else:
            (g,) = batch.load(basis)
        c = formula.chunk_coefficients(g, w, unit=unit, out=g if batch.packed else out)
        measurable = steps[batch.indices[0]].measurable
        # The unit of what cannot be measured is 0 or NaN.
        return c if measurable is None else torch.where(measurable.to(c.device), c, 0.0)

    def needs_remainder(self, weight: torch.Tensor) -> bool:
        """Return whether a tensor of this type may have an entry in ``remainders``."""
        return False


def clear_gradients_(steps: Sequence[TensorStep]) -> None:
    """Zero the gradients of removed weights."""
    masked = [(step.gradient, step.mask) for step in steps if step.mask is not None]
    clear_all_([gradient for gradient, _ in masked], [mask for _, mask in masked])
