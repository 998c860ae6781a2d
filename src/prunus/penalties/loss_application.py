"""The penalty as a term of the loss, whose backward pass yields its gradient."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from prunus._utils.checks import raise_problems, type_problem
from prunus.errors import ArgumentError, PrunusError
from prunus.penalties.application import Application, Strengths, TensorStep, clear_gradients_
from prunus.penalties.formula import PenaltyFormula
from prunus.selection import Selection

__all__ = ["LossApplication", "PenaltyTerm", "check_whole"]


def check_whole(selection: Selection) -> None:
    """Check that the tensors of a term of the loss are whole in this process.

    Raises:
        PrunusError: They are sharded over processes.
    """
    if selection.process_group.sharded:
        raise PrunusError(
            'apply="loss" needs the gradients of whole tensors, but the model is sharded over '
            'processes: choose apply="gradient", which takes the same step, or apply="decoupled"'
        )


@dataclass(frozen=True)
class PenaltyTerm:
    """R(w) as a scalar for a given loss; built by :meth:`RelevancePenalty.bind`.

    Attributes:
        formula: The penalty without its strength.
        selection: The tensors it is applied to.
        strengths: Returns γ of each tensor at the moment of the call.

    Raises:
        PrunusError: The model is sharded over processes.
    """

    formula: PenaltyFormula
    selection: Selection
    strengths: Strengths

    def __post_init__(self) -> None:
        check_whole(self.selection)

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        """Return R(w), a scalar whose gradient is ∂R/∂w, to be added to ``loss``.

        Runs one backward pass through ``loss`` for ∂L/∂w and keeps its graph for the second. A
        tensor that ``loss`` does not depend on has no gradient and is left alone.

        Args:
            loss: The task's loss, a scalar with a graph.

        Raises:
            ArgumentError: ``loss`` is not a scalar or has no graph.
            ArgumentTypeError: ``loss`` is no tensor.
        """
        raise_problems(type_problem("loss", loss, torch.Tensor, "a tensor, the loss"))
        if loss.numel() != 1 or not loss.requires_grad:
            raise ArgumentError(
                "the penalty needs the scalar loss before loss.backward(), but got a tensor of "
                f"shape {tuple(loss.shape)} with requires_grad={loss.requires_grad}"
            )
        tensors = list(self.selection.values())
        gradients = torch.autograd.grad(
            loss, [t.parameter for t in tensors], retain_graph=True, allow_unused=True
        )
        strengths, value = self.strengths(), self.formula.value
        terms = [
            strengths[t.name] * value(t.parameter, gradient.detach(), t.padding_row).to(loss.device)
            for t, gradient in zip(tensors, gradients, strict=True)
            if gradient is not None
        ]
        return sum(terms, loss.new_zeros(()))


class LossApplication(Application):
    """Leaves the penalty to a term of the loss, and warns if a step was taken without it."""

    in_loss: ClassVar[bool] = True
    supports_smoothing: ClassVar[bool] = False

    def __init__(self, formula: PenaltyFormula, selection: Selection, strengths: Strengths) -> None:
        super().__init__(formula, selection, strengths)
        self._term_was_used = False

    def term(self) -> PenaltyTerm:
        """Return the term to add to the loss."""
        return PenaltyTerm(self.formula, self.selection, self._strengths_of_term)

    def _strengths_of_term(self) -> Mapping[str, float]:
        self._term_was_used = True
        return self.strengths()

    def before_step(self, steps: Sequence[TensorStep]) -> None:
        """Zero the gradients of removed weights; they include the penalty's already."""
        clear_gradients_(steps)

    def after_step(self) -> None:
        """Warn, once, if the term was not computed before the step."""
        if not self._term_was_used:
            warnings.warn(
                'a step was taken without the penalty: with apply="loss" the loss must be '
                "loss + pruner.penalty(loss)",
                stacklevel=3,
            )
            self._term_was_used = True
