"""The interface of the ways to apply the penalty: what each does before and after a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from prunus.penalties.formula import PenaltyFormula
from prunus.selection import PrunableTensor, Selection

__all__ = ["Application", "Strengths", "TensorStep"]

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
        mask: True where a weight is kept; None if the tensor has lost no weight.
        loss_scale: The factor that a gradient scaler has multiplied the loss by and that the
            optimizer divides out within its step; None if there is none.
        basis: The values that the coefficients are computed from: the gradient, or a moving average
            of its magnitudes.
        basis_scale: The factor that ``basis`` has been multiplied by; None for 1.
        basis_mean: The mean magnitude of ``basis`` over all shards; None if it is the whole tensor,
            or the coefficient does not need it.
    """

    tensor: PrunableTensor
    weight: torch.Tensor
    gradient: torch.Tensor
    strength: float
    mask: torch.Tensor | None
    loss_scale: float | None
    basis: torch.Tensor
    basis_scale: torch.Tensor | float | None
    basis_mean: torch.Tensor | None


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
    def before_step(self, step: TensorStep) -> None:
        """Edit the gradient of a tensor whose strength is above 0.

        Called under ``torch.no_grad()``. Where the mask is False the gradient must become 0.
        """

    def after_step(self) -> None:  # noqa: B027  # optional for subclasses
        """Edit the weights once the optimizer has moved them."""

    def needs_remainder(self, weight: torch.Tensor) -> bool:
        """Return whether a tensor of this type may have an entry in ``remainders``."""
        return False
