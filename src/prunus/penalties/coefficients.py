"""Irrelevance coefficients: how little the loss depends on a weight, from 0 to 1 (not at all).

Each is a function of the gradient of the loss, some also of the weight. It is held constant in the
optimization: no gradient flows through it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from prunus._utils.fields import number, validate
from prunus._utils.magnitudes import mean_magnitudes_of
from prunus.errors import ArgumentError

__all__ = [
    "CautiousRelevance",
    "Coefficient",
    "ConstantRelevance",
    "ExponentialRelevance",
    "LinearRelevance",
]


_LOG2_E = math.log2(math.e)


class Coefficient(Protocol):
    """Anything that turns a gradient into irrelevance coefficients.

    A coefficient with an attribute ``needs_weight`` that is True is also called with the keyword
    argument ``weight``: the weights that belong to the gradient, not to be changed.

    A coefficient with an attribute ``batched`` that is True is called with blocks of several
    tensors, which saves launches on an accelerator. :meth:`unit` must not read its gradient then;
    a relative one receives a vector of means and returns one of units, and ``unit`` of the call
    broadcasts against the gradient. ``out`` may be the gradient itself. Without it, each tensor is
    processed by itself. A subclass that overrides one of the two methods must set it again.
    """

    @property
    def relative(self) -> bool:
        """Whether :meth:`unit` depends on the tensor's mean gradient magnitude."""
        ...

    def unit(
        self,
        gradient: torch.Tensor,
        scale: torch.Tensor | float = 1.0,
        *,
        mean: torch.Tensor | None = None,
    ) -> torch.Tensor | float:
        """Return the unit that the gradients of this tensor are measured in, a number above 0.

        Args:
            gradient: ∂L/∂w times ``scale``, the whole tensor.
            scale: The factor that the gradient has been multiplied by, such as that of clipping by
                norm. The unit must be proportional to it, so that the coefficients do not change.
            mean: The mean of |gradient| over the whole tensor; needed by a relative coefficient
                where ``gradient`` is one shard of it.
        """
        ...

    def __call__(
        self,
        gradient: torch.Tensor,
        *,
        unit: torch.Tensor | float | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the coefficients, of the gradient's shape.

        Args:
            gradient: ∂L/∂w, or a chunk of it.
            unit: The result of :meth:`unit` for the whole tensor; needed when ``gradient`` is a
                chunk.
            out: The tensor to write to, other than ``gradient``.
        """
        ...


@dataclass(frozen=True)
class _Scaled:
    """The scale α that coefficients measure gradients in."""

    alpha: float = number(1.0, above=0)
    relative: bool = False

    def __post_init__(self) -> None:
        validate(self)

    def unit(
        self,
        gradient: torch.Tensor,
        scale: torch.Tensor | float = 1.0,
        *,
        mean: torch.Tensor | None = None,
    ) -> torch.Tensor | float:
        """Return α times ``scale``; if relative, α times mean |g|, which includes the scale."""
        if not self.relative:
            return self.alpha * scale
        if mean is None:
            (mean,) = mean_magnitudes_of([gradient])
        wide = torch.promote_types(gradient.dtype, torch.float32)
        unit = mean.to(wide) * self.alpha
        # Where the whole gradient is zero every weight is irrelevant: 0 / unit must be 0, not NaN,
        # and the unit's reciprocal must be finite too.
        return unit.clamp_min_(4 * torch.finfo(wide).tiny)


@dataclass(frozen=True)
class ExponentialRelevance(_Scaled):
    """The paper's coefficient, exp(−|g|/α).

    Args:
        alpha: α, in the units of the gradient; or, if ``relative``, in multiples of the mean
            |g| of the tensor. Default 1, as the authors use it. With α far above the typical
            |g| every coefficient is near 1 and the penalty is plain L2; the smaller α, the
            more selective.
        relative: Measure each tensor's gradients in their own mean magnitude, so that one α suits
            all layers, losses and batch sizes. Default False, as in the paper.

    Raises:
        ArgumentError: ``alpha`` is not a finite number above 0.

    Source: Bonetta, Ribero, Cancelliere, arXiv 2204.04977, the factor of w² in their R(w).

    Example:
        >>> ExponentialRelevance(alpha=2.0)(torch.tensor([0.0, -2.0]))
        tensor([1.0000, 0.3679])
    """

    batched: ClassVar[bool] = True

    def __call__(
        self,
        gradient: torch.Tensor,
        *,
        unit: torch.Tensor | float | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return exp(−|g|/unit)."""
        if unit is None:
            unit = self.unit(gradient)
        if isinstance(unit, torch.Tensor) and not gradient.is_cpu:
            return _exponential(gradient, unit, out)
        # As a power of two, which is several times faster on the CPU and as exact here.
        return torch.abs(gradient, out=out).mul_(-_LOG2_E / unit).exp2_()


def _exponential(
    gradient: torch.Tensor, unit: torch.Tensor, out: torch.Tensor | None
) -> torch.Tensor:
    """Return exp(−|gradient|/unit) in as few launches as possible.

    Example:
        >>> _exponential(torch.tensor([0.0, -2.0]), torch.tensor(2.0), None)
        tensor([1.0000, 0.3679])
    """
    return torch.copysign(gradient, -1.0, out=out).div_(unit).exp_()


@dataclass(frozen=True)
class LinearRelevance(_Scaled):
    """LOBSTER's coefficient, relu(1 − |g|/α), with α = 1 in that work.

    Args:
        alpha: As in :class:`ExponentialRelevance`.
        relative: As in :class:`ExponentialRelevance`.

    Raises:
        ArgumentError: ``alpha`` is not a finite number above 0.

    Source: Tartaglione et al., arXiv 2011.09905, the update after the optimizer's step.

    Example:
        >>> LinearRelevance()(torch.tensor([0.0, -0.25, 3.0]))
        tensor([1.0000, 0.7500, 0.0000])
    """

    batched: ClassVar[bool] = True

    def __call__(
        self,
        gradient: torch.Tensor,
        *,
        unit: torch.Tensor | float | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return relu(1 − |g|/unit)."""
        if unit is None:
            unit = self.unit(gradient)
        return torch.abs(gradient, out=out).mul_(-1.0 / unit).add_(1.0).relu_()


@dataclass(frozen=True)
class _Unscaled:
    """A coefficient that does not depend on the size of the gradient."""

    relative: ClassVar[bool] = False

    def unit(
        self,
        gradient: torch.Tensor,
        scale: torch.Tensor | float = 1.0,
        *,
        mean: torch.Tensor | None = None,
    ) -> float:
        """Return 1; the size of the gradient does not matter."""
        return 1.0


@dataclass(frozen=True)
class ConstantRelevance(_Unscaled):
    """1 for every weight, whatever its gradient: the penalty becomes plain L2 (or L1).

    Example:
        >>> ConstantRelevance()(torch.tensor([0.0, 5.0]))
        tensor([1., 1.])
    """

    batched: ClassVar[bool] = True

    def __call__(
        self,
        gradient: torch.Tensor,
        *,
        unit: torch.Tensor | float | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ones of the gradient's shape."""
        return torch.ones_like(gradient) if out is None else out.fill_(1.0)


@dataclass(frozen=True)
class CautiousRelevance(_Unscaled):
    """1 where g·w > 0, else 0: shrinks a weight only where the gradient step shrinks it too.

    The penalty never works against a step of gradient descent. The source compares the weight with
    the update of the optimizer, which differs in sign from the gradient where momentum outweighs
    it, and also shrinks where the product is exactly zero; here a weight without a gradient is left
    as it is.

    The sign of g is that of one step, so ``RelevancePenalty(smoothing=...)``, which averages |g|,
    is rejected.

    Source: Chen et al., Cautious weight decay, arXiv 2510.12402, with the gradient for the update.

    Example:
        >>> weight = torch.tensor([2.0, 2.0, -2.0, 2.0])
        >>> CautiousRelevance()(torch.tensor([0.5, -0.5, -0.5, 0.0]), weight=weight)
        tensor([1., 0., 1., 0.])
    """

    needs_weight: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def __call__(
        self,
        gradient: torch.Tensor,
        *,
        unit: torch.Tensor | float | None = None,
        out: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the coefficients.

        Raises:
            ArgumentError: There is no ``weight``.
        """
        if weight is None:
            raise ArgumentError(
                "CautiousRelevance depends on the sign of the weight, but got none: pass weight="
            )
        # By the signs, because the product of two small numbers is rounded to 0.
        return torch.sign(gradient, out=out).mul_(torch.sign(weight)).relu_()
