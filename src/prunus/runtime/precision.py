"""The types in which sparse linear layers multiply, and how numbers are rounded to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunus._utils.row_scales import quantize_rows

__all__ = ["FLOAT32", "BFloat16", "Int8", "Precision", "type_name", "underflow"]

_LARGEST_ACTIVATION = 255
_LARGEST_SUM = (1 << 31) - 1

_HALF_STEP = 0.5 * (1 + 2**-14)
"""The largest error of a rounding to integers of at most 255, of a quotient in float32."""


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type without the library's.

    Example:
        >>> type_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def underflow(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return how far outputs may be off because numbers below float32's smallest are taken as 0.

    The instructions of bfloat16 do so with weights, activations and sums.
    """
    weight, x = weight.double().abs(), x.double().abs()
    sums = weight.sum(dim=1) + x.sum(dim=1, keepdim=True) + weight.shape[1]
    return torch.finfo(torch.float32).tiny * sums


@dataclass(frozen=True)
class Precision:
    """Products in float32, of weights and activations that are not rounded.

    Attributes:
        dtype: Type of the weights.
        group: Weights of consecutive columns in 32 bits, which one instruction multiplies.
    """

    dtype: torch.dtype = torch.float32
    group: int = 1

    @property
    def name(self) -> str:
        """The name of the type."""
        return type_name(self.dtype)

    def store_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a matrix in the type of the weights, and the factor of each row, if any.

        Args:
            weight: Float32, of shape (rows, columns).
        """
        return weight, None

    def rounded_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the numbers that a layer multiplies in place of a matrix, in float64."""
        stored, scales = self.store_weight(weight)
        return stored.double() if scales is None else stored.double() * scales.double()[:, None]

    def rounded_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return the numbers that a layer multiplies in place of activations, in float64."""
        return x.double()

    def rounding_bound(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return, for each output, how far it may be off because weights and inputs are rounded.

        Args:
            weight: The matrix, float32, of shape (rows, columns).
            x: The activations, float32, of shape (items, columns).

        Returns:
            The bounds in float64, of shape (items, rows).
        """
        return torch.zeros(len(x), len(weight), dtype=torch.float64)

    def weight_problem(self, weight: torch.Tensor) -> str | None:
        """Return why a matrix cannot be multiplied in this type, or None if it can be."""
        return None

    def random_input(self, shape: torch.Size, draw: torch.Generator, scale: float) -> torch.Tensor:
        """Return random activations by which a layer is checked, in float32.

        Args:
            shape: Their shape.
            draw: Draws them.
            scale: About how large they are, where the type has no range.
        """
        return torch.randn(shape, generator=draw) * scale


FLOAT32 = Precision()


@dataclass(frozen=True)
class BFloat16(Precision):
    """Products of weights and activations in bfloat16, whose sums are float32."""

    dtype: torch.dtype = torch.bfloat16
    group: int = 2

    def store_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the matrix rounded to the nearest, ties to even."""
        return weight.to(torch.bfloat16), None

    def rounded_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return activations rounded to the nearest, ties to even."""
        return x.to(torch.bfloat16).double()

    def rounding_bound(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return a bound from the unit roundoff u: (2 u + u²)·|W|·|x|, and what may underflow."""
        roundoff = torch.finfo(torch.bfloat16).eps / 2
        sums = x.double().abs() @ weight.double().abs().T
        return (2 * roundoff + roundoff**2) * sums + underflow(weight, x)


@dataclass(frozen=True)
class Int8(Precision):
    """Products of integers of 8 bits, whose sums are integers of 32 bits.

    A weight is an integer from -127 to 127 times a factor of its row; 0 stays 0. An activation is
    an integer from 0 to 255, minus ``zero_point``, times ``scale``; a number beyond that range
    becomes its end.

    Attributes:
        scale: Difference between neighboring activations.
        zero_point: The integer that an activation of 0 becomes.

    Example:
        >>> int8 = Int8.for_range(-100.0, 155.0)
        >>> int8.zero_point, int8.rounded_input(torch.tensor([0.0, 3.2, 900.0])).tolist()
        (100, [0.0, 3.0, 155.0])
    """

    dtype: torch.dtype = torch.int8
    group: int = 4
    scale: float = 1.0
    zero_point: int = 0

    @classmethod
    def for_range(cls, low: float, high: float) -> Int8:
        """Return the type for activations from ``low`` to ``high``, and for 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        smallest = torch.finfo(torch.float32).tiny
        scale = max((high - low) / _LARGEST_ACTIVATION, smallest) if high > low else 1.0
        return cls(scale=scale, zero_point=round(-low / scale))

    def __post_init__(self) -> None:
        """Round the scale to float32, in which a layer stores it."""
        rounded = torch.tensor(self.scale, dtype=torch.float64).float()
        object.__setattr__(self, "scale", float(rounded))

    @property
    def factor(self) -> torch.Tensor:
        """By what an activation is multiplied before it is rounded to an integer, in float32."""
        return torch.tensor(1 / self.scale, dtype=torch.float64).float()

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest activation."""
        low, high = -self.zero_point, _LARGEST_ACTIVATION - self.zero_point
        return low * self.scale, high * self.scale

    def store_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return integers and the factor of each row, by which its largest weight becomes 127."""
        return quantize_rows(weight)

    def rounded_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return activations rounded to the nearest integers, ties to even, within the range."""
        integers = (x.float() * self.factor).round() + self.zero_point
        return (integers.clamp(0, _LARGEST_ACTIVATION).double() - self.zero_point) * self.scale

    def rounding_bound(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return a bound from half a step of each number, and from activations beyond the range."""
        _integers, scales = self.store_weight(weight)
        assert scales is not None
        low, high = self.limits
        beyond = (x.double() - high).clamp(min=0) + (low - x.double()).clamp(min=0)
        # A product with the factor is rounded before it is rounded to an integer.
        steps = _HALF_STEP * self.scale + beyond
        of_inputs = steps @ self.rounded_weight(weight).abs().T
        of_weights = x.double().abs() @ (weight != 0).double().T
        return of_inputs + _HALF_STEP * scales.double() * of_weights

    def weight_problem(self, weight: torch.Tensor) -> str | None:
        """Return why integers cannot represent a matrix or its products, or None if they can."""
        if not bool(weight.isfinite().all()):
            return "its weight has NaN or infinite elements, which int8 cannot represent"
        integers, _scales = self.store_weight(weight)
        sums = _LARGEST_ACTIVATION * integers.long().abs().sum(dim=1)
        if sums.numel() and int(sums.max()) > _LARGEST_SUM:
            return "a row has so many non-zero weights that its sums may exceed 32 bits in int8"
        return None

    def random_input(self, shape: torch.Size, draw: torch.Generator, scale: float) -> torch.Tensor:
        """Return random activations from the range, and from a tenth of it beyond each end."""
        low, high = self.limits
        fractions: Any = 1.2 * torch.rand(shape, generator=draw, dtype=torch.float64) - 0.1
        return (low + (high - low) * fractions).float()  # type: ignore[no-any-return]
