"""State of optimizers in unusual forms: entries of no parameter, and compressed tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from helpers.data import noise_batch
from helpers.models import tanh_network
from helpers.training import train
from prunus import GradualPruning, Pruner
from prunus._engine.optimizer_state import clear_state, per_weight_state

BATCH = noise_batch(16, 12, 4, seed=5)


class Counting(torch.optim.SGD):
    """An optimizer that counts its steps in an entry of its state that is no parameter's."""

    def __init__(self, parameters: Any, count: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.entries = cast("Any", self.state)
        self.entries["count"] = count

    def step(self, closure: Any = None) -> Any:
        self.entries["count"] = self.entries["count"] + 1
        return super().step(closure)


@pytest.mark.parametrize("count", [0, torch.tensor([0])], ids=["int", "tensor"])
def test_entry_that_is_no_parameter_stays_and_does_not_disturb_a_removal(count: Any) -> None:
    model = tanh_network(12, 10, 4, bias=False, seed=0)
    optimizer = Counting(model.parameters(), count)
    pruner = Pruner(model, optimizer, None, GradualPruning(sparsity=0.75, end=4, every=2))
    train(model, optimizer, BATCH, 6)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert zeros == round(0.75 * pruner.selection.prunable)
    assert int(optimizer.entries["count"]) == 6


class Compressed(torch.Tensor):
    """A state of one byte per weight, as torchao's optimizers keep it; few operations work."""

    codes: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Compressed:
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        made.codes = values.round().to(torch.int8)
        return made

    def dequantize(self) -> torch.Tensor:
        return self.codes.float()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.copy_.default:
            args[0].codes.copy_(args[1].round())
            return args[0]
        if function is torch.ops.aten.detach.default:
            alias = cls(args[0].codes.float())
            alias.codes = args[0].codes
            return alias
        raise NotImplementedError(f"{function} is not supported")


class Sealed(Compressed):
    """A compressed state that no operation can change."""

    dequantize = None  # type: ignore[assignment]


def momentum_in(form: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, nn.Parameter]:
    """Return an optimizer whose momentum, 1, 2, 3, 4, is stored in a form, and the parameter."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    optimizer.state[weight]["momentum_buffer"] = form(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    return optimizer, weight


def test_compressed_state_is_zeroed_where_the_weight_was_removed() -> None:
    optimizer, weight = momentum_in(Compressed)
    clear_state(optimizer, weight, torch.tensor([True, False, True, False]))
    assert optimizer.state[weight]["momentum_buffer"].codes.tolist() == [1, 0, 3, 0]


def test_state_that_cannot_be_changed_is_left_without_an_error() -> None:
    optimizer, weight = momentum_in(Sealed)
    clear_state(optimizer, weight, torch.tensor([True, False, True, False]))
    assert optimizer.state[weight]["momentum_buffer"].codes.tolist() == [1, 2, 3, 4]


def test_compressed_state_is_not_read_as_numbers() -> None:
    optimizer, weight = momentum_in(Compressed)
    assert list(per_weight_state(optimizer, weight)) == []
    optimizer, weight = momentum_in(torch.Tensor.clone)
    assert [state.tolist() for state in per_weight_state(optimizer, weight)] == [[1, 2, 3, 4]]
