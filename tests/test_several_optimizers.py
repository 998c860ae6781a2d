"""One pruner over several optimizers: the same as one optimizer over all tensors."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus import (
    AlternatingGrowth,
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    ExponentialRelevance,
    FisherScore,
    GradientGrowth,
    GradualPruning,
    IterativePruning,
    MagnitudeScore,
    MovementScore,
    OneShot,
    Pruner,
    PrunusError,
    RandomGrowth,
    RelevancePenalty,
    Schedule,
    SoftGrowth,
    select,
)

Setting = Callable[[], dict[str, Any]]


def penalty(apply: Any, **options: Any) -> RelevancePenalty:
    return RelevancePenalty(0.01, ExponentialRelevance(0.3, relative=True), apply=apply, **options)


SETTINGS: dict[str, Setting] = {
    "default with a floor": lambda: {"floor": 0.0},
    "iterative": lambda: {
        "schedule": IterativePruning(fraction=0.2),
        "penalty": penalty("gradient"),
    },
    "gradual": lambda: {
        "schedule": GradualPruning(sparsity=0.8, begin=3, end=20, every=3),
        "penalty": penalty("decoupled", smoothing=0.9),
    },
    "one shot, every gradient": lambda: {
        "schedule": OneShot(sparsity=0.7, at=9),
        "score": FisherScore(every=1),
        "penalty": None,
    },
    "movement": lambda: {"schedule": OneShot(sparsity=0.6, at=5), "score": MovementScore()},
    "automatic strength": lambda: {"schedule": GradualPruning(sparsity=0.9, begin=6, end=25)},
    "penalty in the loss": lambda: {
        "schedule": GradualPruning(sparsity=0.8, begin=3, end=20, every=3),
        "penalty": RelevancePenalty(0.01, apply="loss"),
        "score": MagnitudeScore(),
    },
    **{
        f"growth {type(growth).__name__}": lambda growth=growth: {  # type: ignore[misc]
            "schedule": OneShot(sparsity=0.6, at=4),
            "score": MagnitudeScore(),
            "penalty": penalty("decoupled"),
            "growth": copy.deepcopy(growth),
        }
        for growth in (
            SoftGrowth(until=25, every=2),
            RandomGrowth(until=25, every=3),
            GradientGrowth(until=25, every=3),
            AlternatingGrowth(dense=5, sparse=5, until=28),
        )
    },
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    return nn.Sequential(*layers).double()


def halves(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    parameters = list(model.parameters())
    return parameters[:3], parameters[3:]  # the first one has both parameters of a layer


def one(
    model: nn.Module, make: Callable[..., torch.optim.Optimizer]
) -> list[torch.optim.Optimizer]:
    return [make(model.parameters(), lr=0.05)]


def two(
    model: nn.Module, make: Callable[..., torch.optim.Optimizer]
) -> list[torch.optim.Optimizer]:
    return [make(half, lr=0.05) for half in halves(model)]


def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    pruner: Pruner,
    steps: range = range(40),
) -> list[Any]:
    """Train with a validation after every fourth step; return the validations."""
    validations = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 12, dtype=torch.float64, generator=generator)
        y = torch.randint(3, (8,), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if pruner._penalty is not None and pruner._penalty.apply == "loss":
            loss = loss + pruner.penalty(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        if step % 4 == 3:
            validations.append(pruner.step(1.0 - loss.item() / 100))
    return validations


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_two_optimizers_equal_one(setting: Setting, make: Any) -> None:
    trained = []
    for split in (one, two):
        model = network()
        optimizers = split(model, make)
        pruner = Pruner(model, optimizers if split is two else optimizers[0], **setting())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            validations = train(model, optimizers, pruner)
            pruner.finish()
        trained.append((model.state_dict(), pruner, validations))
    (expected, alone, first), (state, several, second) = trained
    assert alone.sparsity > 0.3
    assert several.sparsity == alone.sparsity
    # The tensors that one operation processes together differ, and with them the rounding.
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-8)
    assert not any(several.masks.differences(alone.masks).values())
    for a, b in zip(first, second, strict=True):
        assert (a.step, a.removed, a.best, a.restored) == (b.step, b.removed, b.best, b.restored)
        pairs = [(a.metric, b.metric), (a.predicted_cost, b.predicted_cost)]
        if a.penalty is not None and b.penalty is not None:
            pairs += zip(astuple(a.penalty), astuple(b.penalty), strict=True)
        assert [x is None for x, _ in pairs] == [y is None for _, y in pairs]
        for x, y in pairs:
            assert x is None or x == pytest.approx(y, rel=1e-6)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("stop", [13, 24])
def test_a_resumed_training_equals_the_uninterrupted_one(setting: Setting, stop: int) -> None:
    def made() -> tuple[nn.Module, list[torch.optim.Optimizer], Pruner]:
        model = network()
        optimizers = two(model, torch.optim.AdamW)
        return model, optimizers, Pruner(model, optimizers, **setting())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizers, pruner = made()
        train(model, optimizers, pruner)
        interrupted = made()
        train(*interrupted, range(stop))
        resumed, others, other = made()
        resumed.load_state_dict(interrupted[0].state_dict())
        for saved, loaded in zip(interrupted[1], others, strict=True):
            loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
        other.load_state_dict(copy.deepcopy(interrupted[2].state_dict()))
        train(resumed, others, other, range(stop, 40))
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert other.history == pruner.history


def test_a_step_counts_once_every_optimizer_has_taken_one() -> None:
    model = network()
    first, second = two(model, torch.optim.SGD)
    pruner = Pruner(
        model, [first, second], None, OneShot(sparsity=0.5, at=2), score=MagnitudeScore()
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer, waiting in (
        (first, [1, 0]),
        (first, [1, 0]),
        (second, [0, 0]),
        (second, [0, 1]),
    ):
        optimizer.step()
        assert pruner.state_dict()["waiting"] == waiting
        assert pruner.sparsity == 0
    first.step()
    assert pruner.sparsity == 0.5


def test_the_present_round_is_part_of_the_state() -> None:
    pruners = []
    for _ in range(2):
        model = network()
        optimizers = two(model, torch.optim.SGD)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        schedule = OneShot(sparsity=0.5, at=1)
        pruner = Pruner(model, optimizers, None, schedule, score=MagnitudeScore())
        pruners.append((optimizers, pruner))
    (saved, pruner), (loaded, other) = pruners
    saved[0].step()
    other.load_state_dict(pruner.state_dict())
    loaded[1].step()
    assert other.sparsity == 0.5


def test_removed_weights_stay_zero_after_a_step_of_either_optimizer() -> None:
    model = network()
    optimizers = two(model, torch.optim.Adam)
    pruner = Pruner(model, optimizers, None, Schedule(), score=MagnitudeScore())
    train(model, optimizers, pruner, range(3))
    pruner.prune(sparsity=0.8)
    for optimizer in (*optimizers, *optimizers):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert not pruner.masks.revived()


def test_each_optimizer_clips_its_own_gradients() -> None:
    model = network()
    optimizers = two(model, torch.optim.SGD)
    Pruner(model, optimizers, None, Schedule(), max_grad_norm=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer, half in zip(optimizers, halves(model), strict=True):
        optimizer.step()
        norm = torch.nn.utils.get_total_norm([p.grad for p in half if p.grad is not None])
        assert norm.item() == pytest.approx(0.5, rel=1e-4)


def test_muon_trains_the_matrices_and_adamw_the_rest() -> None:
    model = network()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizers = [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=0.01)]
    pruner = Pruner(model, optimizers, schedule=GradualPruning(sparsity=0.75, begin=5, end=25))
    train(model, optimizers, pruner)
    pruner.finish()
    zeros = sum(int((t.weight == 0).sum()) for t in pruner.selection.values())
    assert zeros == round(0.75 * pruner.selection.prunable)


@pytest.mark.filterwarnings("ignore:no weight was removed")
def test_an_optimizer_that_takes_no_step_is_reported() -> None:
    model = network()
    optimizers = two(model, torch.optim.SGD)
    pruner = Pruner(model, optimizers, None, Schedule())
    with pytest.warns(UserWarning, match="SGD took no step between two validations"):
        train(model, optimizers[:1], pruner, range(12))


def test_bad_optimizers_are_rejected() -> None:
    model = network()
    first, second = two(model, torch.optim.SGD)
    whole = torch.optim.AdamW(model.parameters())
    for optimizers, error, message in (
        ([], ArgumentError, "one optimizer or several, but the list is empty"),
        ([first, first], ArgumentError, "each optimizer once, but one is repeated in SGD, SGD"),
        ([first, "adam"], ArgumentTypeError, "optimizer[1] must be a torch.optim optimizer"),
        ([first], PrunusError, "but it lacks 2.bias, 4.weight, 4.bias"),
        ([first, torch.optim.SGD([nn.Parameter(torch.ones(1))])], PrunusError, "but none holds"),
        ([first, second, whole], PrunusError, "several hold 0.weight, 0.bias, 2.weight"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            Pruner(model, optimizers, selection=select(model, biases=True))  # type: ignore[arg-type]


def test_the_state_of_another_number_of_optimizers_is_rejected() -> None:
    model = network()
    alone = Pruner(model, torch.optim.SGD(model.parameters()))
    several = Pruner(model, two(model, torch.optim.SGD), None)
    with pytest.raises(CheckpointError, match="list of 2 counts.*but is of 1"):
        several.load_state_dict(alone.state_dict())
