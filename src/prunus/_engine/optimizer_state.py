"""The state that an optimizer keeps for each weight, and its clearing for removed weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from prunus._distributed.shards import local
from prunus._utils.conversions import is_converted
from prunus.masks import clear_

__all__ = ["clear_state", "per_weight_state"]


def per_weight_state(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yield this process's shards of the state that has one number per weight of a parameter.

    Args:
        optimizer: Any optimizer that keeps its state as those of ``torch.optim`` do, itself or in
            one that it is wrapped around.
        parameter: A tensor that it updates.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.sum().backward(); optimizer.step()
        >>> len(list(per_weight_state(optimizer, weight)))
        2
    """
    for value in _states(optimizer, parameter):
        if not is_converted(value):
            yield value


def _states(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield this process's shards of all state with one floating-point number per weight."""
    for inner in vars(optimizer).values():
        if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
            yield from _states(inner, parameter)
    for value in optimizer.state.get(parameter, {}).values():
        if (
            isinstance(value, torch.Tensor)
            and value.shape == parameter.shape
            and value.is_floating_point()
        ):
            yield local(value)


@torch.no_grad()
def clear_state(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, mask: torch.Tensor
) -> None:
    """Zero the per-weight state of ``parameter`` where ``mask`` is False.

    No optimizer is recognized by name. The state of a parameter is distinguished by its form:

    * a floating-point tensor of the parameter's shape holds one number per weight (momentum, second
      moments, step sizes) and is zeroed where the weight was removed, second moments until the
      next step only (:class:`~prunus._engine.second_moments.SecondMoments`);
    * a tensor of a subclass that compresses these numbers, such as the 8-bit and 4-bit optimizers
      of torchao, is decompressed, zeroed and compressed again; if its type does not support that,
      it is left: the gradient of a removed weight is zero, and so is the weight after each step;
    * other numbers and tensors smaller than the parameter (step counts, row and column statistics)
      are shared by weights that stay, and are left, as are entries of no parameter;
    * vectors over all parameters joined, or lists of such (a quasi-Newton history), describe how
      weights act together. No part of them is valid once some weights are removed, so the whole
      state is dropped and the optimizer begins a new one.

    Args:
        optimizer: Any optimizer that keeps its state as those of ``torch.optim`` do, itself or in
            one that it is wrapped around.
        parameter: A tensor that it updates.
        mask: True where the weight is kept; of a sharded tensor, for this process's shard.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.sum().backward(); optimizer.step()
        >>> clear_state(optimizer, weight, torch.tensor([True, False]))
        >>> (optimizer.state[weight]["exp_avg"] != 0).tolist()
        [True, False]
    """
    _clear_joined(optimizer)
    for state in _states(optimizer, parameter):
        if is_converted(state):
            _clear_compressed(state, mask)
        else:
            clear_(state, mask)


def _clear_compressed(state: torch.Tensor, mask: torch.Tensor) -> None:
    """Zero a compressed state where ``mask`` is False, if its type supports that."""
    decompress = getattr(state, "dequantize", None)
    if decompress is None:
        return
    # A subclass may lack any operation. An error here would leave a removal half done.
    with contextlib.suppress(NotImplementedError, TypeError, RuntimeError, AssertionError):
        state.copy_(decompress().masked_fill(~mask.to(state.device), 0.0))


def _clear_joined(optimizer: torch.optim.Optimizer) -> None:
    """Drop the state of each tensor that has a part of vectors over all parameters."""
    for inner in vars(optimizer).values():
        if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
            _clear_joined(inner)
    total = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    for owner, state in list(optimizer.state.items()):
        if not isinstance(owner, torch.Tensor) or not isinstance(state, dict):
            continue  # an entry of the optimizer's own, such as a step count
        if any(_is_joined(value, total, owner) for value in state.values()):
            state.clear()


def _is_joined(value: Any, total: int, owner: torch.Tensor) -> bool:
    """Return whether a value is a vector over all ``total`` weights, or a list of tensors."""
    if isinstance(value, list):
        return any(isinstance(item, torch.Tensor) for item in value)
    return isinstance(value, torch.Tensor) and value.shape == (total,) != owner.shape
