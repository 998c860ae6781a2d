"""``prunus.fit``: what it delivers, leaves behind and refuses."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from helpers.data import normal
from helpers.errors import message_of
from prunus.fitting import FitEpoch
from prunus.fitting.steps import train_step, warmup_and_cosine

X = normal(256, 12, seed=1)
Y = X[:, :3].tanh()
BATCHES = list(zip(torch.split(X, 32), torch.split(Y, 32), strict=True))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Dropout(0.1), nn.Tanh(), nn.Linear(24, 3))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    assert model.training
    return nn.functional.mse_loss(model(inputs), targets)


def error(model: nn.Module) -> float:
    """Return a metric to minimize."""
    assert not model.training
    assert not torch.is_grad_enabled()
    return float((model(X) - Y).square().mean())


def without_gradients(model: nn.Module) -> float:
    with torch.no_grad():
        return error(model.eval())


def trained() -> nn.Sequential:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        for batch in BATCHES:
            optimizer.zero_grad()
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


@pytest.mark.slow
def test_model_is_left_in_the_sparsest_state_that_met_the_floor() -> None:
    model, lines = trained(), list[FitEpoch]()
    before = without_gradients(model)
    result = prunus.fit(
        model, loss, BATCHES, error, epochs=30, floor=3 * before, mode="min", progress=lines.append
    )
    assert result.dense_metric == before
    assert result.metric == without_gradients(model) <= 3 * before
    met = [v.sparsity for v in result.history if v.met]
    assert result.sparsity == max(met) > 0.3
    weights = [model.get_parameter(f"{place}.weight") for place in (0, 3)]
    zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)
    assert zeros / (12 * 24 + 24 * 3) == pytest.approx(result.sparsity)
    assert [line.epoch for line in lines] == list(range(1, 31))
    assert [line.metric for line in lines] == [v.metric for v in result.history]


def test_sparsity_is_exact_and_nothing_else_stays() -> None:
    model = trained().eval()
    groups: list[dict[str, Any]] = [{"params": model[0].parameters()}]
    groups += [{"params": model[3].parameters(), "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for method in ("prunus", "magnitude"):  # again, because nothing is left attached
        result = prunus.fit(
            copy.deepcopy(model) if method == "magnitude" else model,
            loss,
            BATCHES,
            error,
            epochs=4,
            sparsity=0.5,
            mode="min",
            optimizer=optimizer if method == "prunus" else None,
            method=method,
        )
        assert result.sparsity == 0.5
    assert not model.training
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]
    assert not optimizer._optimizer_step_pre_hooks
    prunus.Pruner(model, optimizer, schedule=prunus.OneShot(sparsity=0.9))  # no other is attached


def test_dense_model_stays_if_nothing_sparser_met_the_floor() -> None:
    model = trained()
    weights = copy.deepcopy(model.state_dict())
    result = prunus.fit(model, loss, BATCHES, lambda _: next(values), epochs=2, floor=0.9)
    assert result.sparsity == 0
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


values = iter([1.0, 0.5, 0.4, 1.0])


def test_floor_and_sparsity_that_exclude_each_other_raise() -> None:
    optimizer = torch.optim.Adam((model := trained()).parameters())
    with pytest.raises(prunus.FloorNotReachedError):
        prunus.fit(
            *(model, loss, BATCHES, error),
            epochs=4,
            sparsity=0.9,
            floor=1e-9,
            mode="min",
            optimizer=optimizer,
        )
    assert not optimizer._optimizer_step_pre_hooks


def test_batches_without_a_length_are_counted() -> None:
    class Endless:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return iter(BATCHES)

    batches = Endless()
    prunus.fit(trained(), loss, batches, error, epochs=3, sparsity=0.5, mode="min")
    assert batches.passes == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "pass floor, sparsity or both"),
        ({"sparsity": 1.5, "epochs": 0}, "epochs must be at least 1, but is 0; sparsity must be"),
        ({"floor": 0.1, "batches": []}, "batches must have at least one batch, but is empty"),
        ({"floor": 0.1, "batches": iter(BATCHES)}, "which runs out after one: pass a DataLoader"),
        ({"floor": 0.1, "method": "prunos"}, "Did you mean prunus?"),
        ({"floor": 0.1, "evaluate": lambda _: "good"}, "evaluate returns must be a number, but is"),
        (
            {"floor": 0.1, "evaluate": lambda _: math.nan},
            "evaluate must return a finite number",
        ),
        ({"floor": 0.1, "loss": lambda *_: 1.0}, "loss must return the mean loss, a floating-"),
        ({"floor": 0.1, "loss": lambda model, _: model[0].weight.sum() / 0}, "lower the learning"),
        ({"floor": 0.1, "loss": nn.MSELoss()}, "but is torch's MSELoss: pass one that calls it"),
        ({"floor": 0.1, "loss": nn.functional.mse_loss}, "but is torch's mse_loss: pass one that"),
        ({"floor": 0.1, "loss": 3}, "loss must be a function, but is 3"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"batches": BATCHES, "epochs": 2, "evaluate": error, "loss": loss}
    chosen: dict[str, Any] = {"mode": "min", **given, **changes}
    assert re.search(re.escape(message), message_of(lambda: prunus.fit(trained(), **chosen)))


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
def test_training_does_not_depend_on_whether_the_caller_has_disabled_gradients(
    disabled: Callable[[], Any],
) -> None:
    model = network()
    with disabled():
        result = prunus.fit(model, loss, BATCHES, without_gradients, epochs=2, sparsity=0.5)
    assert result.sparsity == pytest.approx(0.5, abs=0.01)


def test_batches_that_become_fewer_are_refused() -> None:
    batches = list(BATCHES)

    def shrinking(model: nn.Module) -> float:
        del batches[1:]
        return error(model)

    call: Callable[[], object] = lambda: prunus.fit(  # noqa: E731
        trained(), loss, batches, shrinking, epochs=2, sparsity=0.5, mode="min"
    )
    assert message_of(call) == "batches must be as many in each epoch, 8, but are 1 in epoch 1"


def mean_square(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def test_a_step_on_several_batches_is_one_on_their_union() -> None:
    models = [network().double().eval() for _ in range(2)]
    inputs, targets = X.double(), Y.double()
    for model, sizes in zip(models, ([256], [100, 156]), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        observed: list[int] = []
        train_step(
            optimizer,
            warmup_and_cosine(optimizer, 0.0, 10),
            list(zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True)),
            partial(mean_square, model),
            size=lambda batch: len(batch[0]),
            observe=lambda _, size, observed=observed: observed.append(size),  # type: ignore[misc]
        )
        assert observed == sizes
    torch.testing.assert_close(*(model.state_dict() for model in models))
