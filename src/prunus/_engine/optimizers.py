"""The optimizers that train one model together, and what a pruner requires of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch

from prunus._utils.checks import TypeProblem, type_problem
from prunus.errors import PrunusError, listing
from prunus.selection import PrunableTensor, Selection

__all__ = ["Optimizers", "as_list", "optimizer_problems", "parameter_ids"]


class Optimizers(Sequence[torch.optim.Optimizer]):
    """One or several optimizers, of which each prunable tensor has exactly one.

    Args:
        optimizers: The optimizers.
        selection: The prunable tensors.

    Raises:
        PrunusError: No optimizer holds a tensor, or several do; every such tensor is named.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], selection: Selection) -> None:
        self._optimizers = tuple(optimizers)
        self._tensors: list[list[PrunableTensor]] = [[] for _ in self._optimizers]
        self._by_name: dict[str, torch.optim.Optimizer] = {}
        holders = _holders(self._optimizers, selection)
        _check_held(holders, len(self._optimizers))
        for name, (index,) in holders.items():
            self._tensors[index].append(selection[name])
            self._by_name[name] = self._optimizers[index]

    @overload
    def __getitem__(self, index: int) -> torch.optim.Optimizer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.optim.Optimizer]: ...
    def __getitem__(
        self, index: int | slice
    ) -> torch.optim.Optimizer | Sequence[torch.optim.Optimizer]:
        return self._optimizers[index]

    def __len__(self) -> int:
        return len(self._optimizers)

    @property
    def names(self) -> str:
        """Their classes, for messages."""
        return listing([type(optimizer).__name__ for optimizer in self._optimizers])

    def groups(self) -> Iterator[dict[str, Any]]:
        """Yield the parameter groups of all."""
        for optimizer in self._optimizers:
            yield from optimizer.param_groups

    def of(self, name: str) -> torch.optim.Optimizer:
        """Return the optimizer of a prunable tensor."""
        return self._by_name[name]

    def tensors(self, index: int) -> Sequence[PrunableTensor]:
        """Return the prunable tensors of an optimizer, in the order of the selection."""
        return self._tensors[index]


def as_list(optimizer: object) -> list[Any]:
    """Return what was passed as one optimizer or several, as a list."""
    return list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]


def optimizer_problems(optimizer: object) -> Iterator[str | None]:
    """Yield what is wrong with one optimizer or several: types, step hooks, repetitions."""
    several = as_list(optimizer)
    if not several:
        yield "optimizer must be one optimizer or several, but the list is empty"
    if len({id(one) for one in several}) < len(several):
        names = [type(one).__name__ for one in several]
        yield f"optimizer must have each optimizer once, but one is repeated in {listing(names)}"
    for index, one in enumerate(several):
        yield _problem("optimizer" if len(several) == 1 else f"optimizer[{index}]", one)


def _problem(name: str, optimizer: object) -> str | None:
    problem = type_problem(name, optimizer, torch.optim.Optimizer, "a torch.optim optimizer")
    # A wrapper may inherit the class without initializing it. torch asks for these hooks at each
    # step and offers no other way to tell.
    if problem is None and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return TypeProblem(
            f"{name} must have torch.optim's step hooks, but {type(optimizer).__name__} has "
            "none: pass the optimizer that it is wrapped around, or use prunus.integrations, such "
            "as AcceleratedPruner for accelerate"
        )
    return problem


def _holders(
    optimizers: Sequence[torch.optim.Optimizer], selection: Selection
) -> dict[str, list[int]]:
    """Return, for each prunable tensor, the indices of the optimizers that hold it."""
    ids = [parameter_ids(optimizer) for optimizer in optimizers]
    return {
        name: [index for index, own in enumerate(ids) if id(tensor.parameter) in own]
        for name, tensor in selection.items()
    }


def _check_held(holders: Mapping[str, Sequence[int]], optimizers: int) -> None:
    """Check that each prunable tensor has exactly one optimizer.

    Args:
        holders: For each tensor, the indices of the optimizers that hold it.
        optimizers: The number of optimizers.

    Raises:
        PrunusError: Some have none or several; every one is named.
    """
    missing = [name for name, indices in holders.items() if not indices]
    if missing:
        held = "the optimizer" if optimizers == 1 else "one of the optimizers"
        lacks = "it lacks" if optimizers == 1 else "none holds"
        raise PrunusError(
            f"{held} must hold every prunable tensor, but {lacks} {listing(missing)}: "
            "build it from this model's parameters, after any .to(device) that replaces them, pass "
            "all optimizers of the model as a list, or leave these tensors out with "
            "select(model, exclude=...)"
        )
    shared = [name for name, indices in holders.items() if len(indices) > 1]
    if shared:
        raise PrunusError(
            f"each prunable tensor must have one optimizer, but several hold {listing(shared)}: "
            "build each optimizer from parameters of its own"
        )


def parameter_ids(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the ``id`` of each parameter that an optimizer holds."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
