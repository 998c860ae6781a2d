"""The relevance penalty: a term that shrinks the weights which the loss does not depend on.

With g the gradient of the loss alone, c(g) the irrelevance coefficient and γ the strength,

    R(w) = γ · Σᵢ c(gᵢ) · wᵢ²,        ∂R/∂w = 2γ · c(g) · w   (c is held constant).

It is applied in one of three ways, chosen by ``apply``:

* ``"gradient"``: ∂R/∂w is added to ``.grad`` just before the optimizer's step: one backward pass;
* ``"loss"``: R is a scalar to add to the loss, whose backward pass then yields the same gradient,
  to rounding; two backward passes, as in the authors' code;
* ``"decoupled"``: w ← w − ∂R/∂w after the step, past momentum and adaptive scaling, as LOBSTER does
  (its λ is 2γ here).

A step of the shrink is far smaller than what bfloat16 or float16 can tell from 1, and added to such
a weight it would be lost. The decoupled way keeps what rounding takes in a float32 remainder beside
each 16-bit tensor; by the other ways the optimizer rounds, and the pruner warns of it.

One batch says little of a weight that only some examples use, such as the embedding of a rare word:
in most batches its gradient is small. With ``smoothing`` the coefficient is c(ḡ) instead, where ḡ
is a moving average of |g|, and such a weight counts as relevant as often as it was used within the
last 1 / (1 − smoothing) steps or so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from prunus._utils.checks import (
    choice_problem,
    method_problem,
    number_problem,
    problem_of,
    raise_problems,
)
from prunus._utils.chunks import CPU_CHUNK, bits, chunks
from prunus.errors import PrunusError
from prunus.penalties.coefficients import Coefficient, ExponentialRelevance
from prunus.penalties.strengths import ConstantStrength, Strength, as_strength
from prunus.selection import Selection, Target, select

__all__ = ["Apply", "PenaltyTerm", "RelevancePenalty"]

Apply = Literal["gradient", "loss", "decoupled"]

_APPLICATIONS = ("gradient", "loss", "decoupled")


@dataclass(frozen=True)
class RelevancePenalty:
    """What to shrink, how strongly, and by which way.

    Args:
        strength: γ, or a :class:`~prunus.Strength`. Default 1e-5, the authors'.
        coefficient: The irrelevance coefficient c; default the paper's exp(−|g|).
        power: 2 for Σ c·w², the paper's; 1 for Σ c·|w|.
        apply: ``"gradient"`` (default), ``"loss"`` or ``"decoupled"``; see the module.
        smoothing: The weight of the past in ḡ, from 0 (default, the paper's: the gradient of the
            step alone) to below 1. It takes the memory of one tensor more for each prunable one,
            and a pruner, which holds and saves it.

    Raises:
        PrunusError: An argument is out of range, or smoothing is asked for with ``apply="loss"``.

    Source: Bonetta, Ribero, Cancelliere, arXiv 2204.04977.

    Example:
        >>> penalty = RelevancePenalty(strength=0.25)
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> term = penalty.bind(layer)
        >>> loss = layer(torch.zeros(1, 1)).sum()        # does not depend on the weight
        >>> term(loss).item()                            # so R = 0.25 · exp(−0) · 2²
        1.0
    """

    strength: float | Strength = 1e-5
    coefficient: Coefficient = field(default_factory=ExponentialRelevance)
    power: Literal[1, 2] = 2
    apply: Apply = "gradient"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        raise_problems(
            problem_of(as_strength, self.strength),
            choice_problem("power", self.power, (1, 2), "1 (Σ c·|w|) or 2 (Σ c·w²)"),
            choice_problem("apply", self.apply, _APPLICATIONS),
            method_problem("coefficient", self.coefficient, ["unit", "__call__"], "a Coefficient"),
            number_problem("smoothing", self.smoothing, least=0, below=1),
        )
        if self.smoothing and self.apply == "loss":
            raise PrunusError(
                f'smoothing needs apply="gradient" or "decoupled", but is {self.smoothing} with '
                'apply="loss", whose term knows one loss only: choose another way, or smoothing=0'
            )

    def bind(self, model: nn.Module | Selection) -> PenaltyTerm:
        """Return the term of the loss of a model's prunable tensors: ``loss + term(loss)``.

        For use without a :class:`~prunus.Pruner`; with one, ``pruner.penalty(loss)`` is this term,
        with a strength that follows the run.

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
                "follows a run: use Pruner(model, optimizer, penalty) and pruner.penalty(loss)"
            )
        gamma = dict.fromkeys(selection, strength.gamma)
        return PenaltyTerm(self, selection, lambda: gamma)

    def average(
        self,
        gradient: torch.Tensor,
        memory: torch.Tensor | None,
        count: int,
        scale: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        """Move ḡ towards |gradient / scale|; return it, in float32 at least.

        It is the plain mean of the first 1 / (1 − smoothing) gradients, so that the very first does
        not count for more than others, and from there on the moving average. To be called under
        ``torch.no_grad()``, once a step.

        Args:
            gradient: ∂L/∂w, or ``scale`` times that.
            memory: What this returned at the step before, which is changed; None at the first.
            count: How many gradients there have been, this one included.
            scale: What the gradient has been multiplied by.
        """
        # A change of a hundredth would be lost to rounding in 16 bits.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        memory = (
            torch.zeros_like(gradient, dtype=wide)
            if memory is None
            else memory.to(gradient.device, wide)
        )
        if isinstance(scale, torch.Tensor):
            scale = scale.to(gradient.device)
        for g, m in chunks(gradient, memory):
            magnitude = g.abs().to(wide)
            if scale is not None:
                magnitude.div_(scale)
            m.lerp_(magnitude, max(1.0 - self.smoothing, 1.0 / count))
        return memory

    def add_to_gradient_(
        self,
        gradient: torch.Tensor,
        weight: torch.Tensor,
        strength: float,
        mask: torch.Tensor | None = None,
        padding_row: int | None = None,
        scale: torch.Tensor | float | None = None,
        average: torch.Tensor | None = None,
        mean: torch.Tensor | None = None,
    ) -> None:
        """Add ∂R/∂w to ``gradient`` in place, and zero it where ``mask`` is False.

        To be called under ``torch.no_grad()``. The coefficients are those of ``average`` if there
        is one, and else of ``gradient`` as it comes in, divided by ``scale`` if it has been
        multiplied by that; ``mean`` is that of the magnitudes they are made of, where the tensor is
        held together with other processes. One pass over memory, and scratch of one piece, whatever
        the size of the tensor. The row that stands for padding is left alone.
        """
        # The same as below for a tensor of one piece, with less to do besides: in a small network
        # this is called every millisecond.
        plain = mask is None and padding_row is None and scale is None and average is None
        if plain and mean is None and gradient.numel() <= CPU_CHUNK:
            factors = weight if self.power == 2 else torch.sign(weight)
            gradient.addcmul_(self.coefficient(gradient), factors, value=strength * self.power)
            return
        padding = None if padding_row is None else gradient[padding_row].clone()
        coefficient, power, factor = self.coefficient, self.power, strength * self.power
        # The average is in the loss's own units, whatever the gradient was multiplied by.
        seen, scale = (gradient, scale) if average is None else (average, None)
        unit = coefficient.unit(seen, 1.0 if scale is None else scale, mean=mean)
        c: torch.Tensor | None = None
        for g, w, s, *kept in (
            chunks(gradient, weight, seen) if mask is None else chunks(gradient, weight, seen, mask)
        ):
            # The coefficients of one piece are the scratch for those of the next.
            c = coefficient(s, unit=unit, out=None if c is None or c.shape != s.shape else c)
            g.addcmul_(c, w if power == 2 else torch.sign(w), value=factor)
            for mask_piece in kept:
                bits(g).mul_(mask_piece)
        if padding is not None:
            gradient[padding_row] = padding

    @torch.no_grad()
    def coefficients(
        self,
        gradient: torch.Tensor,
        padding_row: int | None = None,
        scale: torch.Tensor | float | None = None,
        *,
        mean: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return c(g / scale) of a whole tensor; 0 for the padding row.

        Args:
            gradient: ∂L/∂w, or ``scale`` times that.
            padding_row: The row that stands for padding.
            scale: What the gradient has been multiplied by.
            mean: That of |gradient| over the whole tensor, where ``gradient`` is a part.
            out: Where to write the result.
        """
        out = torch.empty_like(gradient) if out is None else out
        unit = self.coefficient.unit(gradient, 1.0 if scale is None else scale, mean=mean)
        for g, c in chunks(gradient, out):
            result = self.coefficient(g, unit=unit, out=c)
            if result is not c:  # a coefficient of the user's own may ignore ``out``
                c.copy_(result)
        if padding_row is not None:
            out[padding_row] = 0.0
        return out

    @torch.no_grad()
    def shrink_(
        self,
        weight: torch.Tensor,
        coefficients: torch.Tensor,
        strength: float,
        remainder: torch.Tensor | None = None,
    ) -> None:
        """Apply w ← w − ∂R/∂w in place, never past zero.

        Args:
            weight: w.
            coefficients: c, of the same shape.
            strength: γ.
            remainder: What rounding has taken from w so far, in float32. The weight is then taken
                for the sum of both, so that many shrinks too small for its own type add up.
        """
        if remainder is not None:
            self._shrink_short_(weight, coefficients, strength, remainder)
            return
        for w, c in chunks(weight.detach(), coefficients):
            if self.power == 2:
                w.addcmul_(w, (c * (2.0 * strength)).clamp_max_(1.0), value=-1.0)
            else:
                step = c * strength
                w.sub_(torch.minimum(torch.maximum(w, -step), step))

    def _shrink_short_(
        self,
        weight: torch.Tensor,
        coefficients: torch.Tensor,
        strength: float,
        remainder: torch.Tensor,
    ) -> None:
        for w, c, r in chunks(weight.detach(), coefficients, remainder):
            exact = w + r
            step = c.to(exact.dtype) * (strength * self.power)
            if self.power == 2:
                step.clamp_max_(1.0).mul_(exact)
            else:
                step = torch.minimum(torch.maximum(exact, -step), step)
            # The step goes to the remainder, which is small enough to hold it, and from there to
            # the weight as much as the weight can tell.
            before = w.clone()
            w.copy_(w + r.sub_(step))
            r.sub_(w - before.to(r.dtype))


@dataclass(frozen=True)
class PenaltyTerm:
    """R(w) as a scalar for a given loss; made by :meth:`RelevancePenalty.bind`.

    Attributes:
        penalty: What is applied.
        selection: The tensors it is applied to.
        strengths: Says γ of each tensor at the moment of the call.

    Raises:
        PrunusError: The model is sharded over processes.
    """

    penalty: RelevancePenalty
    selection: Selection
    strengths: Callable[[], Mapping[str, float]]

    def __post_init__(self) -> None:
        if self.selection.process_group.sharded:
            raise PrunusError(
                'apply="loss" needs the gradients of whole tensors before they are spread over '
                'processes, but the model is sharded: choose apply="gradient", which takes the '
                'same step, or apply="decoupled"'
            )

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        """Return R(w), a scalar whose gradient is 2γ·c·w, to be added to ``loss``.

        Takes one backward pass through ``loss`` for ∂L/∂w and keeps its graph for the second. A
        tensor that ``loss`` does not reach has no gradient, takes no part in the step, and is left
        alone.

        Args:
            loss: The task's loss, a scalar with a graph.

        Raises:
            PrunusError: ``loss`` is not a scalar or has no graph.
        """
        if loss.numel() != 1 or not loss.requires_grad:
            raise PrunusError(
                "the penalty needs the scalar loss before loss.backward(), but got a tensor of "
                f"shape {tuple(loss.shape)} with requires_grad={loss.requires_grad}"
            )
        targets = list(self.selection.values())
        gradients = torch.autograd.grad(
            loss, [t.parameter for t in targets], retain_graph=True, allow_unused=True
        )
        strengths = self.strengths()
        terms = [
            strengths[target.name] * self._of(target, gradient).to(loss.device)
            for target, gradient in zip(targets, gradients, strict=True)
            if gradient is not None
        ]
        return sum(terms, loss.new_zeros(()))

    def _of(self, target: Target, gradient: torch.Tensor) -> torch.Tensor:
        c = self.penalty.coefficients(gradient.detach(), target.padding_row)
        magnitude = target.parameter.abs() if self.penalty.power == 1 else target.parameter.square()
        # In float32 at least, for the sum easily leaves the range of float16.
        return (c * magnitude).sum(dtype=torch.promote_types(c.dtype, torch.float32))
