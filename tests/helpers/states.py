"""Comparison of networks and states to the last bit."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
from torch import nn


def raw(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements."""
    # Whatever its layout, as a single element may have any stride.
    plain = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return plain.view(-1).view(torch.uint8).numpy().tobytes()


def same(one: Any, other: Any) -> bool:
    """Return whether two trees of tensors and plain values are equal.

    Equal are values of one type, tensors of one shape, type and content to the last bit (signed
    zeros and not-a-numbers included), and mappings whose keys come in the same order.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and raw(one) == raw(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules hold the same tensors."""
    return same(dict(one.state_dict()), dict(other.state_dict()))
