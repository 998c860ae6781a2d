"""Tensors of a model by name, and the first names of tied ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["first_names", "named_tensors"]


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and then the buffers of a model, a tied one under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def first_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the first name of each tensor, by each of its names.

    Example:
        >>> a, b = torch.ones(1), torch.ones(1)
        >>> first_names({"a": a, "b": b, "c": a})
        {'a': 'a', 'b': 'b', 'c': 'a'}
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
