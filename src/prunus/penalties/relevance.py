"""The relevance penalty: a term that shrinks the weights which the loss does not depend on.

With g the gradient of the loss alone, c(g) the irrelevance coefficient and γ the strength,

    R(w) = γ · Σᵢ c(gᵢ) · wᵢ²,        ∂R/∂w = 2γ · c(g) · w   (c is held constant).

It is applied in one of three ways, chosen by ``apply``:

* ``"gradient"``: ∂R/∂w is added to ``.grad`` just before the optimizer's step: one backward pass;
* ``"loss"``: R is a scalar to add to the loss, whose backward pass then yields the same gradient,
  up to rounding; two backward passes, as in the authors' code;
* ``"decoupled"``: w ← w − ∂R/∂w after the step, past momentum and adaptive scaling, as LOBSTER does
  (its λ is 2γ here).

A single shrink is far smaller than the resolution of bfloat16 or float16 at 1, and added to such a
weight it would be rounded off. ``"decoupled"`` keeps what rounding would lose in a float32
remainder beside each 16-bit tensor; with the other two the optimizer rounds, and the pruner warns.

A weight that few batches use, such as one of the embedding of a rare token, has a small gradient in
most of them, so a single batch underestimates its relevance. With ``smoothing``, relevance is
computed from ḡ, a moving average of |g| over about the last 1 / (1 − smoothing) steps: the
coefficient is c(ḡ). A gradient with NaN or infinity is left out of ḡ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from prunus._utils.fields import checked, choice, methods, number, validate
from prunus.errors import PrunusError
from prunus.penalties.application import Application
from prunus.penalties.coefficients import Coefficient, ExponentialRelevance
from prunus.penalties.decoupled_application import DecoupledApplication
from prunus.penalties.formula import PenaltyFormula, Power
from prunus.penalties.gradient_application import GradientApplication
from prunus.penalties.loss_application import LossApplication, PenaltyTerm
from prunus.penalties.strengths import (
    AutomaticStrength,
    ConstantStrength,
    Strength,
    UpdateStrength,
    as_strength,
    strength_problem,
)
from prunus.selection import Selection, select

__all__ = ["APPLICATIONS", "Apply", "RelevancePenalty"]

Apply = Literal["gradient", "loss", "decoupled"]

APPLICATIONS: dict[Apply, type[Application]] = {
    "gradient": GradientApplication,
    "loss": LossApplication,
    "decoupled": DecoupledApplication,
}
"""The ways to apply the penalty, by the name that ``apply`` selects them with."""

_AUTOMATIC = {2: AutomaticStrength.__name__, 1: UpdateStrength.__name__}
"""The strength that finds γ for each power."""


@dataclass(frozen=True)
class RelevancePenalty:
    """A penalty: its strength, its formula, and the way it is applied.

    Args:
        strength: γ, or a :class:`~prunus.Strength`. Default :class:`~prunus.AutomaticStrength`,
            which halves an irrelevant weight from one validation to the next; it needs
            ``apply="decoupled"`` and ``power=2``. :class:`~prunus.UpdateStrength` finds the
            strength for ``power=1``.
        coefficient: The irrelevance coefficient c. Default: the paper's exp(−|g|/α), with α a fifth
            of each tensor's mean |g|.
        power: 2 for Σ c·w², the paper's; 1 for Σ c·|w|.
        apply: ``"decoupled"`` (default), ``"gradient"`` or ``"loss"``; see the module.
        smoothing: The weight of the past in ḡ, from 0 (default: the gradient of the
            step alone) to below 1. It costs one more tensor of memory for each prunable one, and
            needs a pruner, which keeps and saves it.

    Raises:
        ArgumentError: An argument is out of range, the strength is missing with another ``apply``
            or ``power``, or ``smoothing`` is not 0 with ``apply="loss"`` or a coefficient that
            depends on the sign of the gradient.
        ArgumentTypeError: An argument has a type that cannot be used.

    Source: Bonetta, Ribero, Cancelliere, arXiv 2204.04977. The settings of their experiments are
    those of ``prunus.method("paper")``.

    Example:
        >>> import torch
        >>> penalty = RelevancePenalty(strength=0.25)
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> term = penalty.bind(layer)
        >>> loss = layer(torch.zeros(1, 1)).sum()        # does not depend on the weight
        >>> term(loss).item()                            # so R = 0.25 · exp(−0) · 2²
        1.0
    """

    strength: float | Strength = checked(AutomaticStrength(), by=strength_problem)
    coefficient: Coefficient = methods(
        ExponentialRelevance(alpha=0.2, relative=True), "unit", "__call__", expected="a Coefficient"
    )
    power: Power = choice(2, (1, 2), expected="1 (Σ c·|w|) or 2 (Σ c·w²)")
    apply: Apply = choice("decoupled", tuple(APPLICATIONS))
    smoothing: float = number(0.0, least=0, below=1)

    def __post_init__(self) -> None:
        validate(self)
        validate(self, self.formula.problem())
        if self.smoothing and not self.application.supports_smoothing:
            smoothed = [f'"{name}"' for name, way in APPLICATIONS.items() if way.supports_smoothing]
            validate(
                self,
                f"smoothing needs apply={' or '.join(smoothed)}, but is {self.smoothing} with "
                f'apply="{self.apply}", whose term is computed from one loss only: choose another '
                "apply=, or smoothing=0",
            )
        if isinstance(self.strength, AutomaticStrength | UpdateStrength):
            own = type(self.strength).__name__
            power = 2 if isinstance(self.strength, AutomaticStrength) else 1
            if self.apply != "decoupled" or self.power != power:
                validate(
                    self,
                    f'strength must be a number or another Strength with apply="{self.apply}" and '
                    f'power={self.power}: {own}() finds it with apply="decoupled" and '
                    f"power={power} only, and {_AUTOMATIC[3 - power]}() with power={3 - power}",
                )
        if self.smoothing and self.formula.needs_weight:
            validate(
                self,
                f"smoothing must be 0 with {self.coefficient!r}, which depends on the sign of the "
                f"gradient, but is {self.smoothing}: an average of |∂L/∂w| has no sign; choose "
                "another coefficient, or smoothing=0",
            )

    @property
    def application(self) -> type[Application]:
        """The class that applies it."""
        return APPLICATIONS[self.apply]

    @property
    def formula(self) -> PenaltyFormula:
        """The penalty without its strength."""
        return PenaltyFormula(self.coefficient, self.power)

    def bind(self, model: nn.Module | Selection) -> PenaltyTerm:
        """Return the term of the loss for a model's prunable tensors: ``loss + term(loss)``.

        For use without a :class:`~prunus.Pruner`; with one, ``pruner.penalty(loss)`` is this term,
        with a strength that changes during the run.

        Raises:
            PrunusError: The strength is not constant, or smoothing is not 0: both need the state of
                a pruner.
        """
        if self.smoothing:
            raise PrunusError(
                f"a penalty by itself has no memory, but smoothing is {self.smoothing}: use "
                "Pruner(model, optimizer, penalty), or leave smoothing out"
            )
        selection = model if isinstance(model, Selection) else select(model)
        strength = as_strength(self.strength)
        if not isinstance(strength, ConstantStrength):
            raise PrunusError(
                f"a penalty by itself needs a constant strength, but has {strength!r}, which "
                "changes during a run: use Pruner(model, optimizer, penalty) and "
                "pruner.penalty(loss)"
            )
        gamma = dict.fromkeys(selection, strength.gamma)
        return PenaltyTerm(self.formula, selection, lambda: gamma)
