"""The update probe, which measures how far an optimizer moves the kept weights in a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunus._engine.optimizers import Optimizers
from prunus._engine.state_errors import state_error
from prunus._utils.checks import number_problem, raise_problems
from prunus.selection import PrunableTensor, Selection

__all__ = ["UpdateProbe"]

_PERIOD = 20
"""One of so many steps is measured. A heuristic: a measurement takes about as long as a step of
plain gradient descent on the sample, and the mean differs little from step to step."""

_SAMPLE = 2**20
"""Weights in the sample, at most about so many, so that the copy of a large network stays small."""

_KEYS = ("rates", "moved", "counted")


@dataclass(frozen=True)
class _Copy:
    """The sample of some tensors of a parameter group before an update.

    Attributes:
        group: The group's position among those of all optimizers.
        lr: Its learning rate.
        tensors: The tensors.
        weights: The sampled weights of each.
    """

    group: int
    lr: float
    tensors: Sequence[PrunableTensor]
    weights: list[torch.Tensor]


class UpdateProbe:
    """Measures mean |Δw| of the kept weights, in multiples of the learning rate.

    Of each parameter group, an evenly spaced sample of the prunable weights is copied before the
    optimizer's own update in one step of 20, and compared with the weights after it. The sums stay
    on the devices until :meth:`read`, so that no step waits for one.

    Args:
        optimizers: The optimizers.
        selection: The prunable tensors.
    """

    def __init__(self, optimizers: Optimizers, selection: Selection) -> None:
        self._optimizers = optimizers
        self._selection = selection
        self._stride = max(1, selection.prunable // _SAMPLE)
        self._steps = [0] * len(optimizers)
        self._rates = [0.0] * self._groups
        # Σ |Δw| / lr and the number of these weights, of each parameter group.
        self._moved: list[torch.Tensor | float] = [0.0] * self._groups
        self._counted: list[torch.Tensor | float] = [0.0] * self._groups
        self._before: dict[int, list[_Copy]] = {}

    @property
    def _groups(self) -> int:
        return sum(1 for _ in self._optimizers.groups())

    def rate(self, group: int) -> float | None:
        """Return mean |Δw| / lr of a parameter group when it was last read; None if never.

        Args:
            group: Its position among the groups of all optimizers.
        """
        rate = self._rates[group] if group < len(self._rates) else 0.0
        return rate or None

    def forget(self, index: int) -> None:
        """Forget what was copied before a step that an optimizer skipped."""
        self._before.pop(index, None)

    def before_update(self, index: int) -> None:
        """Copy the sample if this step of an optimizer is to be measured, and it is not yet.

        Args:
            index: The optimizer's.
        """
        if self._steps[index] % _PERIOD or index in self._before:
            return
        # A product with 1 copies all tensors of a type in one launch.
        self._before[index] = [
            _Copy(number, lr, tensors, list(torch._foreach_mul(self._sample(tensors), 1.0)))
            for number, lr, tensors in self._measured(index)
        ]

    def after_update(self, index: int) -> None:
        """Add the updates of the sample to the sums, and count the step.

        Args:
            index: The optimizer's.
        """
        self._steps[index] += 1
        for copy in self._before.pop(index, ()):
            while len(self._rates) <= copy.group:  # a parameter group was added
                for values in (self._rates, self._moved, self._counted):
                    values.append(0.0)
            dtype = torch.promote_types(copy.weights[0].dtype, torch.float32)
            updates = torch._foreach_sub(self._sample(copy.tensors), copy.weights)
            moved = torch.stack(torch._foreach_norm(updates, 1, dtype=dtype)).sum()
            kept = torch.stack(torch._foreach_norm(copy.weights, 0, dtype=dtype)).sum()
            self._moved[copy.group] = self._moved[copy.group] + moved / copy.lr
            self._counted[copy.group] = self._counted[copy.group] + kept

    def _measured(self, index: int) -> list[tuple[int, float, list[PrunableTensor]]]:
        """Return each group's number, learning rate and tensors, by device and type."""
        first = sum(len(self._optimizers[i].param_groups) for i in range(index))
        tensors = {id(tensor.parameter): tensor for tensor in self._optimizers.tensors(index)}
        measured: list[tuple[int, float, list[PrunableTensor]]] = []
        for number, group in enumerate(self._optimizers[index].param_groups, start=first):
            lr = float(group.get("lr", 1.0))
            if not lr > 0:
                continue
            alike: dict[tuple[torch.device, torch.dtype], list[PrunableTensor]] = {}
            for parameter in group["params"]:
                tensor = tensors.get(id(parameter))
                if tensor is None or parameter.grad is None:
                    continue
                if self._selection.counted[tensor.name] and tensor.weight.numel():
                    key = parameter.device, parameter.dtype
                    alike.setdefault(key, []).append(tensor)
            measured += [(number, lr, list(each)) for each in alike.values()]
        return measured

    def _sample(self, tensors: Sequence[PrunableTensor]) -> list[torch.Tensor]:
        """Return every so-manieth weight of each tensor."""
        weights = [tensor.weight.detach().reshape(-1) for tensor in tensors]
        return weights if self._stride == 1 else [weight[:: self._stride] for weight in weights]

    def read(self) -> None:
        """Compute the rates from the sums, of which the older ones count half each time.

        If several processes hold the tensors together, all must call this.
        """
        own, totals = self._sums(), self._totals()
        for number, (moved, counted) in enumerate(zip(*totals, strict=True)):
            finite = math.isfinite(moved)
            if finite and counted > 0:
                self._rates[number] = moved / counted
            halves = (own[:, number] / 2).tolist() if finite else (0.0, 0.0)
            self._moved[number], self._counted[number] = halves

    def _sums(self) -> torch.Tensor:
        """Return the sums of this process: Σ |Δw| / lr and the number of weights of each group."""
        values = [[float(each) for each in row] for row in (self._moved, self._counted)]
        return torch.tensor(values, dtype=torch.float64)

    def _totals(self) -> list[list[float]]:
        """Return the sums over all processes that hold the tensors together."""
        totals: list[list[float]] = self._selection.process_group.sum(self._sums()).tolist()
        return totals

    def state_dict(self) -> dict[str, Any]:
        """Return the rates, the sums of all processes and the counts of steps."""
        moved, counted = self._totals()
        return {
            "update_steps": list(self._steps),
            "rates": list(self._rates),
            "moved": moved,
            "counted": counted,
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can load a state.

        Raises:
            CheckpointError: An entry is missing or has a wrong value; every one is named.
        """
        raise_problems(
            *_list_problems("update_steps", state.get("update_steps"), len(self._steps), True),
            *(problem for key in _KEYS for problem in _list_problems(key, state.get(key))),
            error=state_error,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._before = {}
        self._steps = [int(value) for value in state["update_steps"]]
        self._rates = [float(value) for value in state["rates"]]
        processes = self._selection.process_group.processes
        self._moved = [float(value) / processes for value in state["moved"]]
        self._counted = [float(value) / processes for value in state["counted"]]


def _list_problems(
    key: str, values: object, length: int | None = None, whole: bool = False
) -> Sequence[str | None]:
    """Return what is wrong with a list of numbers that are not negative."""
    if not isinstance(values, list | tuple) or length not in (None, len(values)):
        numbers = "numbers" if length is None else f"{length} numbers"
        return [f"{key} must be a list of {numbers}, but is {values!r}"]
    return [number_problem(key, value, whole=whole, least=0) for value in values]
