"""Training that a pruner does not see, and training that ends before its schedule."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from helpers.data import noise_batch
from helpers.errors import message_of
from helpers.models import tanh_network
from helpers.training import squared_error, train
from prunus import (
    FloorNotReachedError,
    GradualPruning,
    IterativePruning,
    OneShot,
    Pruner,
    PrunusError,
    Schedule,
)

BATCH = noise_batch(16, 12, 4, seed=5)


def network() -> Any:
    return tanh_network(12, 10, 4, bias=False, seed=0)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Ascent(torch.optim.Optimizer):
    """A wrapper whose own step is never called, as that of sharpness-aware minimization."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner


def test_step_of_another_optimizer_is_reported_once() -> None:
    model = network()
    wrapper = Ascent(sgd(model))
    pruner = Pruner(model, wrapper, None, GradualPruning(sparsity=0.9, end=4))
    train(model, wrapper.inner, BATCH, 4)
    pruner.step(0.5)
    train(model, wrapper.inner, BATCH, 4)
    with pytest.warns(UserWarning, match=r"no step of the pruner's optimizer \(Ascent\) was seen"):
        pruner.step(0.5)
    train(model, wrapper.inner, BATCH, 4)
    pruner.step(0.5)  # once is enough: a second warning would fail here


def test_weights_that_are_loaded_before_a_validation_are_not_reported() -> None:
    model = network()
    pruner = Pruner(model, sgd(model), None, Schedule())
    model.load_state_dict(network().state_dict())
    pruner.step(0.5)


def test_trained_copy_is_reported() -> None:
    model = network()
    pruner = Pruner(model, sgd(model), None, IterativePruning(fraction=0.5), floor=0.9)
    other = copy.deepcopy(model)
    optimizer = sgd(other)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for metric in (0.5, 0.6, 0.7):
            train(other, optimizer, BATCH, 2)
            pruner.step(metric)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("the validation metric changed from 0.6 to 0.7, but no step of")
    assert "a deep copy" in message


def test_training_that_is_seen_is_not_reported() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, None, Schedule())
    for metric in (0.5, 0.6, 0.7):
        train(model, optimizer, BATCH, 1)
        pruner.step(metric)


@pytest.mark.parametrize(
    "schedule", [GradualPruning(sparsity=0.9, end=10), OneShot(sparsity=0.9, at=10)]
)
def test_training_that_ends_before_the_schedule_is_reported(schedule: Schedule) -> None:
    model = network()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, None, schedule)
    train(model, optimizer, BATCH, 6)
    expected = "removes its last weights at step 10, but the training ended at step 6 with"
    with pytest.warns(UserWarning, match=expected):
        pruner.finish()
    train(model, optimizer, BATCH, 4)
    pruner.finish()
    assert pruner.sparsity == pytest.approx(0.9, abs=0.01)


def test_schedule_without_a_last_step_ends_silently() -> None:
    model = network()
    pruner = Pruner(model, sgd(model), None, OneShot(sparsity=0.9))
    assert pruner.schedule.last_step is None
    pruner.finish()


def test_floor_that_no_validation_met_names_the_best_metric() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, floor=0.9)
    assert message_of(pruner.finish, FloorNotReachedError).startswith("there was no validation")
    for metric in (0.5, 0.75, 0.6):
        train(model, optimizer, BATCH, 1)
        pruner.step(metric)
    assert "the best of 3 metrics is 0.75; lower the floor" in message_of(pruner.finish)
    resumed = Pruner(model, optimizer, None, IterativePruning(), floor=0.9)
    assert "no validation" in message_of(resumed.finish)
    resumed.load_state_dict(pruner.state_dict() | {"strength": resumed.state_dict()["strength"]})
    assert "the best of 3 metrics is 0.75" in message_of(resumed.finish)


def test_present_state_is_delivered_only_if_removed_weights_are_zero() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, None)
    train(model, optimizer, BATCH, 1)
    pruner.prune(sparsity=0.5)
    train(model, sgd(model), BATCH, 2)  # an optimizer of its own
    with pytest.raises(PrunusError, match="removed weights are not zero in"):
        pruner.finish()


class LossFirst(torch.optim.SGD):
    """An optimizer whose step accepts the loss itself."""

    def step(self, loss: Any = None) -> Any:
        assert not callable(loss)
        return super().step()


class NeverCalls(torch.optim.SGD):
    """An optimizer that accepts a closure and does not call it."""

    def step(self, closure: Any = None) -> Any:
        return super().step()


@pytest.mark.parametrize("number", [float, torch.Tensor.detach], ids=["float", "tensor"])
def test_argument_that_is_no_closure_is_passed_on(number: Any) -> None:
    model = network()
    optimizer = LossFirst(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, None, GradualPruning(sparsity=0.5, end=2, every=1))
    for _ in range(4):
        optimizer.zero_grad()
        loss = squared_error(model, BATCH)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(number(loss.detach()))
    assert (pruner.sparsity, pruner.masks.revived()) == (0.5, {})


def test_closure_that_is_not_called_leaves_the_optimizer_to_its_gradients() -> None:
    model = network()
    optimizer = NeverCalls(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(model, optimizer, None)
    train(model, optimizer, BATCH, 1)
    pruner.prune(sparsity=0.5)
    reference = copy.deepcopy(model)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other = Pruner(reference, plain, None, masks=pruner.masks)
    for net, opt, argument in ((model, optimizer, lambda: 0.0), (reference, plain, None)):
        for _ in range(3):
            opt.zero_grad()
            squared_error(net, BATCH).backward()  # type: ignore[no-untyped-call]
            opt.step(argument)
    assert pruner.masks.revived() == other.masks.revived() == {}
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_tensor_that_changed_its_shape_is_named() -> None:
    model = network()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, None)
    train(model, optimizer, BATCH, 1)
    pruner.prune(sparsity=0.5)
    name, tensor = next(iter(pruner.selection.items()))
    optimizer.zero_grad()
    tensor.parameter.data = torch.zeros(11, 12)
    expected = f"tensors changed their shape since the Pruner was built: {name} (10×12 to 11×12)"
    assert message_of(lambda: pruner.prune(sparsity=0.8)).startswith(expected)
    tensor.parameter.grad = torch.ones(11, 12)
    assert message_of(optimizer.step).startswith(expected)
