"""Comparing networks and states to the last bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def same(one: Any, other: Any) -> bool:
    """Say whether two trees of tensors and plain values are equal, the order of keys included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two modules hold the same tensors."""
    return same(dict(one.state_dict()), dict(other.state_dict()))
