"""The arguments of the pruner and its calls: wrong ones are rejected, all at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers.pruners import coupled_penalty, magnitude_pruner
from helpers.pruning import classifier, epoch, sgd
from prunus import (
    IterativePruning,
    NonFiniteError,
    OneShot,
    Pruner,
    PrunusError,
    TaylorScore,
    select,
)


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(PrunusError, match=r"but it lacks 0\.weight, 4\.weight: build it from this"):
        magnitude_pruner(classifier(), sgd(classifier()))


def test_an_optimizer_of_a_part_is_refused_unless_the_rest_is_left_out() -> None:
    model = classifier()
    with pytest.raises(PrunusError, match=r"but it lacks 0\.weight: build it"):
        magnitude_pruner(model, sgd(model[4]))
    pruner = magnitude_pruner(model, sgd(model[4]), selection=select(model, exclude="0"))
    assert pruner.prune(sparsity=0.5) == 48


@pytest.mark.parametrize("metric", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_rejected(metric: float) -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    with pytest.raises(NonFiniteError, match="the validation metric must be finite, but is"):
        pruner.step(metric)
    assert pruner.sparsity == 0.0


@pytest.mark.parametrize("metric", ["good", "0.9", [0.9], {"accuracy": 0.9}, torch.ones(2)])
def test_a_metric_that_is_no_number_is_rejected(metric: Any) -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    for call in (pruner.step, pruner.consider):
        with pytest.raises(PrunusError, match="the validation metric must be a number, but is"):
            call(metric)
    assert pruner.sparsity == 0.0


def test_a_metric_may_be_a_tensor_of_one_number() -> None:
    model = classifier()
    metric: Any = torch.tensor(0.75)
    seen = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5).step(metric)
    assert (type(seen.metric), seen.metric, seen.met) == (float, 0.75, True)


def test_a_step_without_the_metric_that_the_schedule_needs_is_rejected() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    with pytest.raises(PrunusError, match=r"IterativePruning with floor=0\.5 needs the validation"):
        pruner.step()
    assert magnitude_pruner(model, sgd(model), schedule=OneShot(sparsity=0.5)).step().removed == 368


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass either sparsity or kept, but got sparsity=None and kept=None"),
        ({"sparsity": 0.5, "kept": 3}, "pass either"),
        ({"sparsity": 1.5}, "sparsity must be from 0 to 1, but is 1.5"),
        ({"kept": 1000}, "kept must be from 0 to 736, but is 1,000"),
        ({"kept": 3.5}, "kept must be a whole number from 0 to 736, but is 3.5"),
        ({"sparsity": "0.9"}, "sparsity must be a finite number from 0 to 1, but is '0.9'"),
    ],
)
def test_invalid_amounts_are_rejected(arguments: dict[str, float], message: str) -> None:
    model = classifier()
    with pytest.raises(PrunusError, match=message):
        magnitude_pruner(model, sgd(model)).prune(**arguments)  # type: ignore[arg-type]


def test_a_second_penalty_on_the_same_optimizer_is_refused() -> None:
    model = classifier()
    optimizer = sgd(model)
    first = magnitude_pruner(model, optimizer, coupled_penalty(0.1))
    with pytest.raises(PrunusError, match=r"penalty on these tensors already.*call detach\(\)"):
        magnitude_pruner(model, optimizer, coupled_penalty(0.1))
    first.detach()
    magnitude_pruner(model, optimizer, coupled_penalty(0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": 0.1}, 'penalty must be a RelevancePenalty, "auto" or None, but is 0.1'),
        ({"penalty": "l2"}, r"but is 'l2': such as prunus\.RelevancePenalty\(strength\)"),
        ({"schedule": "gradual"}, r"but is 'gradual': such as prunus\.GradualPruning\("),
        (
            {"schedule": IterativePruning},
            "schedule must be a Schedule or None, but is the class IterativePruning: "
            r"pass an instance, IterativePruning\(\.\.\.\)$",
        ),
        (
            {"score": "magnitude"},
            r"is 'magnitude': pass an instance, such as .*MagnitudeScore\(\)$",
        ),
        (
            {"score": TaylorScore},
            r"score must be a Score, but is the class TaylorScore: .*, TaylorScore\(\.\.\.\)",
        ),
        (
            {"selection": ["0.weight"]},
            "selection must be a Selection, or a function that returns one, .*, but is",
        ),
        ({"masks": [1]}, r"masks must be masks by name or None, but is \[1\]"),
        ({"masks": {"0.weight": 1, "4.weight": 2}}, "0.weight must be torch.bool.*, but is 1, "),
        ({"min_density": "0.1"}, "min_density must be a finite number .* but is '0.1'"),
        ({"max_grad_norm": "1"}, "max_grad_norm must be a finite number .* but is '1'"),
        ({"max_grad_norm": torch.ones(2)}, r"above 0 or None, but is Tensor of shape \(2,\)"),
        ({"model": None}, "model must be a torch.nn.Module, but is None"),
        ({"model": nn.Linear}, "model must be a torch.nn.Module, but is the class Linear"),
        ({"optimizer": None}, "optimizer must be a torch.optim optimizer, but is None"),
    ],
)
def test_arguments_of_another_type_are_rejected(arguments: dict[str, Any], message: str) -> None:
    model = classifier()
    with pytest.raises(PrunusError, match=message):
        magnitude_pruner(**{"model": model, "optimizer": sgd(model), **arguments})


def test_all_arguments_of_another_type_are_reported_at_once() -> None:
    model = classifier()
    with pytest.raises(PrunusError, match="penalty must be .*; min_density must .*; masks must "):
        magnitude_pruner(model, sgd(model), 0.1, min_density=2, masks=3)  # type: ignore[arg-type]
    with pytest.raises(
        PrunusError, match="^model must be .*; optimizer must be .*; schedule must "
    ):
        magnitude_pruner(3, 3, schedule=3)  # type: ignore[arg-type]


def test_a_score_without_gradients_needs_no_observe_method() -> None:
    class Signed:
        memory_names = ()

        def compute(self, weight: torch.Tensor, memory: Any, *, uniform: Any) -> torch.Tensor:
            return weight

    class Unsaid:
        compute = Signed.compute

    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), score=Signed())
    pruner.prune(sparsity=0.25)
    epoch(model, pruner.optimizers[0])
    assert pruner.masks.kept == 552
    with pytest.raises(PrunusError, match="without memory_names, observe$"):
        magnitude_pruner(classifier(), sgd(model), score=Unsaid())


@pytest.mark.parametrize(
    ("every", "found"), [(0, "0"), (-4, "-4"), (2.7, r"2\.7"), ("x", "'x'"), (True, "True")]
)
def test_every_of_a_custom_score_must_be_a_whole_number_of_at_least_1(
    every: Any, found: str
) -> None:
    class Custom(TaylorScore):
        pass

    score = Custom()
    object.__setattr__(score, "every", every)
    model = classifier()
    with pytest.raises(PrunusError, match=f"every of score must be .*at least 1, but is {found}$"):
        magnitude_pruner(model, sgd(model), score=score)


def test_an_optimizer_without_step_hooks_is_rejected() -> None:
    class Around(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = classifier()
    with pytest.raises(
        PrunusError, match="step hooks, but Around has none: pass the optimizer that it"
    ):
        magnitude_pruner(model, Around(sgd(model)))


def test_a_selection_of_another_model_is_refused() -> None:
    model, other = classifier(), classifier()
    optimizer = sgd(nn.ModuleList([model, other]))
    with pytest.raises(
        PrunusError, match=r"the model's own, but 0\.weight, 4\.weight are not: select"
    ):
        magnitude_pruner(model, optimizer, selection=select(other))


def test_a_replaced_layer_is_rejected_by_every_call() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(fraction=0.5), floor=0.5)
    assert pruner.step(0.9).best
    replaced = model[4]
    model[4] = nn.Linear(32, 5)
    for call in (lambda: pruner.step(0.9), lambda: pruner.prune(sparsity=0.9), pruner.finish):
        with pytest.raises(
            PrunusError, match=r"but 4\.weight are not: .*build optimizer and Pruner"
        ):
            call()
    model[4] = replaced
    pruner.finish()
    assert model[0].weight.all()


def test_taylor_needs_the_gradient_of_the_loss_alone() -> None:
    model = classifier()
    with pytest.raises(
        PrunusError, match='TaylorScore needs the gradient of the loss alone.*apply="loss"'
    ):
        Pruner(model, sgd(model), coupled_penalty(0.1, apply="loss"), score=TaylorScore())


def test_a_minimum_density_of_one_is_rejected() -> None:
    model = classifier()
    with pytest.raises(PrunusError, match=r"min_density must be from 0 to below 1, but is 1\.0"):
        magnitude_pruner(model, sgd(model), min_density=1.0)
