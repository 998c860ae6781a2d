"""The formula of the relevance penalty for one tensor: coefficients, value and derivative.

With g the gradient of the loss alone, c(g) the irrelevance coefficient, p the power and γ the
strength,

    R(w) = γ · Σᵢ c(gᵢ) · |wᵢ|^p,        ∂R/∂w = γ · p · c(g) · |w|^(p−1) · sign(w),

where c is held constant. Some coefficients are c(g, w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, cast

import torch

from prunus._utils.batches import Batch, same_device_and_type
from prunus._utils.chunks import chunks
from prunus._utils.devices import on_device
from prunus._utils.magnitudes import mean_magnitudes_of
from prunus.penalties.coefficients import Coefficient

__all__ = ["PenaltyFormula", "Power"]

Power = Literal[1, 2]


class _CoefficientOfWeight(Protocol):
    def __call__(
        self,
        gradient: torch.Tensor,
        *,
        unit: torch.Tensor | float | None,
        out: torch.Tensor | None,
        weight: torch.Tensor | None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class PenaltyFormula:
    """R(w) without its strength.

    Attributes:
        coefficient: The irrelevance coefficient c.
        power: 2 for Σ c·w², 1 for Σ c·|w|.
    """

    coefficient: Coefficient
    power: Power

    @cached_property
    def needs_weight(self) -> bool:
        """Whether the coefficient depends on the weight too."""
        return bool(getattr(self.coefficient, "needs_weight", False))

    @cached_property
    def batched(self) -> bool:
        """Whether the coefficients of several tensors can be computed at once."""
        # Not inherited by a class with another unit or another formula.
        owners = {
            name: depth
            for depth, cls in reversed(list(enumerate(type(self.coefficient).__mro__)))
            for name in ("batched", "unit", "__call__")
            if name in vars(cls)
        }
        if "batched" not in owners or owners["batched"] > min(owners["unit"], owners["__call__"]):
            return False
        return bool(getattr(self.coefficient, "batched", False))

    def problem(self) -> str | None:
        """Return what is wrong with the coefficient, found by calling it on three numbers."""
        gradient, name = torch.tensor([-1.0, 0.0, 2.0]), type(self.coefficient).__name__
        expected = "as unit(gradient, scale, *, mean) and __call__(gradient, *, unit, out"
        expected += ", weight)" if self.needs_weight else ")"
        try:
            unit = self.coefficient.unit(gradient, 1.0, mean=None)
            result: object = self.chunk_coefficients(
                gradient, gradient, unit=unit, out=torch.empty(3)
            )
        except Exception as error:  # the class is the user's and may raise anything
            return (
                f"coefficient must be a Coefficient, called {expected}, but {name} raised "
                f"{type(error).__name__}: {error}"
            )
        if isinstance(result, torch.Tensor) and result.shape == gradient.shape:
            return None if bool(result.isfinite().all()) else _not_finite(name, result)
        found = tuple(result.shape) if isinstance(result, torch.Tensor) else repr(result)
        return (
            "coefficient must return a tensor of the gradient's shape, (3,) in a trial, but "
            f"{name} returned {found}"
        )

    def factors(self, weight: torch.Tensor) -> torch.Tensor:
        """Return |w|^(p−1) · sign(w): the derivative of |w|^p divided by p."""
        return weight if self.power == 2 else torch.sign(weight)

    def value(
        self, weight: torch.Tensor, gradient: torch.Tensor, padding_row: int | None
    ) -> torch.Tensor:
        """Return Σ c(g)·|w|^p of a whole tensor, a scalar with a graph to ``weight``."""
        c = self.coefficients(gradient, padding_row, weight=weight.detach())
        magnitude = weight.abs() if self.power == 1 else weight.square()
        # In float32 at least, because the sum easily leaves the range of float16.
        return (c * magnitude).sum(dtype=torch.promote_types(c.dtype, torch.float32))

    def chunk_coefficients(
        self,
        gradient: torch.Tensor,
        weight: torch.Tensor | None = None,
        *,
        unit: torch.Tensor | float | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the coefficients of a chunk.

        Args:
            gradient: The chunk of the gradient.
            weight: The same chunk of the weights; needed by some coefficients.
            unit: The coefficient's unit for the whole tensor; needed where this is a part of it.
            out: The tensor to write to; a custom coefficient may ignore it.
        """
        if not self.needs_weight:
            return self.coefficient(gradient, unit=unit, out=out)
        coefficient = cast("_CoefficientOfWeight", self.coefficient)
        return coefficient(gradient, unit=unit, out=out, weight=weight)

    def units(
        self,
        bases: Sequence[torch.Tensor],
        scale: torch.Tensor | float | None = None,
        means: Sequence[torch.Tensor | None] = (),
    ) -> Callable[[Batch], torch.Tensor | float]:
        """Return a function that returns the coefficient's unit for a batch of tensors.

        Args:
            bases: The whole tensors that coefficients are computed from.
            scale: The factor that they have been multiplied by.
            means: The mean of |x| over all shards of each, where it is known.
        """
        coefficient, factor = self.coefficient, 1.0 if scale is None else scale
        by_tensor: list[torch.Tensor | float] = []
        if coefficient.relative and self.batched:
            known = [mean for mean in means if mean is not None]
            all_means = known if len(known) == len(bases) else mean_magnitudes_of(bases)

            def unit_of(index: int, means: torch.Tensor) -> torch.Tensor:
                unit = coefficient.unit(bases[index], factor, mean=means)
                assert isinstance(unit, torch.Tensor)
                return unit

            units: dict[int, torch.Tensor] = {}

            def of_batch(batch: Batch) -> torch.Tensor:
                first = batch.indices[0]
                if batch.packed:
                    # Of the rows, which takes fewer launches than of the tensors and then the rows.
                    return unit_of(first, batch.spread(all_means))
                if not units:
                    for group in same_device_and_type(bases):
                        vector = unit_of(group[0], torch.stack([all_means[i] for i in group]))
                        units.update(zip(group, vector.unbind(), strict=True))
                return batch.spread([units[index] for index in range(len(bases))])

            return of_batch
        for index, basis in enumerate(bases):
            factor = on_device(factor, basis.device)
            if self.batched and by_tensor and bases[index - 1].device == basis.device:
                by_tensor.append(by_tensor[-1])
                continue
            mean = means[index] if means else None
            by_tensor.append(coefficient.unit(basis, factor, mean=mean))
        return lambda batch: by_tensor[batch.indices[0]]

    @torch.no_grad()
    def coefficients(
        self,
        gradient: torch.Tensor,
        padding_row: int | None = None,
        scale: torch.Tensor | float | None = None,
        *,
        weight: torch.Tensor | None = None,
        mean: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return c(g / scale) of a whole tensor; 0 in the padding row.

        Args:
            gradient: ∂L/∂w, or ``scale`` times that.
            padding_row: The row of an embedding that stands for padding.
            scale: The factor that the gradient has been multiplied by.
            weight: w, of the same shape; needed by some coefficients.
            mean: The mean of |gradient| over the whole tensor, where ``gradient`` is a shard of it.
            out: The tensor to write to.
        """
        out = torch.empty_like(gradient) if out is None else out
        unit = self.coefficient.unit(gradient, 1.0 if scale is None else scale, mean=mean)
        weights = [weight] if self.needs_weight and weight is not None else []
        for g, c, *w in chunks(gradient, out, *weights):
            result = self.chunk_coefficients(g, *w, unit=unit, out=c)
            if result is not c:  # a custom coefficient may ignore ``out``
                c.copy_(result)
        if padding_row is not None:
            out[padding_row] = 0.0
        return out


def _not_finite(name: str, result: torch.Tensor) -> str:
    return (
        "coefficient must return finite numbers, but for the gradients -1, 0 and 2 "
        f"{name} returned {result.tolist()}"
    )
