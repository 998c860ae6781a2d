"""References of the roundings to bfloat16 and int8, by NumPy in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["integer_layer", "integer_weight", "rounded_layer", "to_bfloat16", "to_integers"]


def to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Round normal numbers to 8 significant bits, ties to even, in float64."""
    mantissa, exponent = np.frexp(x.detach().double().numpy())
    return torch.from_numpy(np.ldexp(np.rint(mantissa * 256) / 256, exponent))


def to_integers(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """Round numbers to (q - zero_point)·scale with integers q from 0 to 255, in float64."""
    scaled = x.detach().numpy() * np.float32(1 / scale)
    integers = np.clip(np.rint(scaled) + np.float32(zero_point), 0, 255)
    return torch.from_numpy((integers.astype(np.float64) - zero_point) * scale)


def integer_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integers from -127 to 127, and the factor of each row, in float64."""
    rows = weight.detach().numpy()
    largest = np.abs(rows).max(axis=1, initial=0) if rows.size else np.zeros(len(rows))
    scales = np.maximum(largest.astype(np.float32) / np.float32(127), np.finfo(np.float32).tiny)
    integers = np.rint(rows.astype(np.float64) / scales.astype(np.float64)[:, None])
    return torch.from_numpy(integers), torch.from_numpy(scales.astype(np.float64))


def integer_layer(layer: nn.Module) -> Any:
    """Return a copy of a linear layer in float64 whose weights are multiples of a row's factor."""
    integers, scales = integer_weight(layer.get_parameter("weight"))
    return rounded_layer(layer, integers * scales[:, None])


def rounded_layer(layer: nn.Module, weight: torch.Tensor) -> Any:
    """Return a copy of a layer in float64 with another weight."""
    rounded = copy.deepcopy(layer).double()
    with torch.no_grad():
        rounded.get_parameter("weight").copy_(weight)
    return rounded
