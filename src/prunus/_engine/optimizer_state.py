"""Clearing what an optimizer remembers of weights that were removed, whatever the optimizer."""

from __future__ import annotations

from typing import Any

import torch

from prunus._distributed.shards import local
from prunus.masks import clear_

__all__ = ["clear_state"]


@torch.no_grad()
def clear_state(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, mask: torch.Tensor
) -> None:
    """Zero every per-weight memory of ``parameter`` where ``mask`` is False.

    No optimizer is known by name. What is remembered of a parameter is told apart by its form:

    * a floating-point tensor of the parameter's shape holds one number per weight (momentum, second
      moments, step sizes) and is zeroed where the weight was removed;
    * other numbers and tensors smaller than the parameter (step counts, row and column statistics)
      are shared by weights that stay, and are left;
    * vectors over all parameters joined, or lists of such (a quasi-Newton history), describe how
      weights act together. No part of them stays true once some weights are gone, so the whole
      memory is dropped and the optimizer begins a new one.

    Args:
        optimizer: Any optimizer of ``torch.optim`` or that keeps its state as they do, by itself or
            in one that it is wrapped around.
        parameter: A tensor that it updates.
        mask: True where the weight is kept; of a sharded tensor, for the part held here.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.sum().backward(); optimizer.step()
        >>> clear_state(optimizer, weight, torch.tensor([True, False]))
        >>> (optimizer.state[weight]["exp_avg"] != 0).tolist()
        [True, False]
    """
    for within in vars(optimizer).values():
        if isinstance(within, torch.optim.Optimizer) and within is not optimizer:
            clear_state(within, parameter, mask)
    joined = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    for held, state in list(optimizer.state.items()):
        if any(_is_joined(value, joined, held) for value in state.values()):
            state.clear()
    for value in optimizer.state.get(parameter, {}).values():
        if (
            isinstance(value, torch.Tensor)
            and value.shape == parameter.shape
            and value.is_floating_point()
        ):
            clear_(local(value), mask)


def _is_joined(value: Any, joined: int, held: torch.Tensor) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, torch.Tensor) for item in value)
    return isinstance(value, torch.Tensor) and value.shape == (joined,) != held.shape
