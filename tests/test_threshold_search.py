"""ThresholdSearch: the plateau, the bisection, and trial removals that leave no trace."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.pruners import magnitude_pruner
from helpers.pruning import INPUTS, LABELS, classifier, epoch, sgd
from helpers.states import same
from prunus import (
    ArgumentError,
    ArgumentTypeError,
    NonFiniteError,
    Pruner,
    PruningStatus,
    PrunusError,
    RandomScore,
    ThresholdSearch,
)
from prunus.constraint import Mode


def search(
    schedule: ThresholdSearch,
    metric: float,
    loss: Callable[[int], float] = float,
    *,
    kept: int = 1000,
    least: int = 1,
    met: bool = True,
    mode: Mode = "min",
) -> tuple[int | None, list[int]]:
    """Search where ``loss`` of the number of removed weights is known; return the trials, too."""
    trials = []

    def metric_if_kept(count: int, evaluate: Callable[[], float]) -> float:
        trials.append(kept - count)
        return loss(kept - count)

    status = PruningStatus(
        met=met,
        prunable=1000,
        kept=kept,
        least=least,
        metric=metric,
        mode=mode,
        metric_if_kept=metric_if_kept,
    )
    return schedule.after_validation(status), trials


def at_plateau(**arguments: Any) -> ThresholdSearch:
    """Return a schedule that searches at the next validation without improvement."""
    schedule = ThresholdSearch(evaluate=lambda: 0.0, patience=1, **arguments)
    assert search(schedule, 1.0) == (None, [])
    return schedule


@pytest.mark.parametrize(
    ("mode", "metrics", "plateau"),
    [
        # An improvement of 10 percent: 0.9 from 1.0 is none, as it is not below 0.9.
        ("min", [1.0, 0.95, 0.9, 0.91], 3),
        ("min", [1.0, 0.95, 0.89, 0.85, 0.81, 0.9], 5),
        ("max", [1.0, 1.05, 1.1, 1.0], 3),
        ("max", [1.0, 1.05, 1.11, 1.2, 1.21, 1.22], 5),
        ("max", [-1.0, -0.95, -0.89, -0.85, -0.83, -0.82], 5),
    ],
)
def test_a_plateau_is_patience_validations_without_the_improvement(
    mode: Mode, metrics: list[float], plateau: int
) -> None:
    schedule = ThresholdSearch(evaluate=lambda: 0.0, patience=3, improvement=0.1)
    searched = [bool(search(schedule, metric, mode=mode)[1]) for metric in metrics]
    assert searched.index(True) == plateau


def test_a_search_waits_until_the_floor_is_met() -> None:
    schedule = at_plateau()
    assert search(schedule, 1.0, met=False) == (None, [])
    assert search(schedule, 1.0, met=False) == (None, [])
    assert search(schedule, 1.0, lambda n: 1.0 + n)[1]


def test_the_bisection_makes_the_trials_computed_by_hand() -> None:
    # Loss 2 + n/1000 within 2.1, so 100 of 1,000. Beyond is 1,000 at first, the least is 1.
    schedule = at_plateau(tolerance=0.05, resolution=0.1)
    answer, trials = search(schedule, 1.0, lambda n: 2.0 + n / 1000)
    assert trials == [0, 500, 250, 125, 62, 93, 109, 101]
    assert answer == 907


@given(
    limit=st.integers(0, 1000),
    kept=st.integers(1, 1000),
    least=st.integers(0, 1000),
    mode=st.sampled_from(["max", "min"]),
    resolution=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_the_largest_removal_within_the_tolerance_is_found(
    limit: int, kept: int, least: int, mode: Mode, resolution: float
) -> None:
    sign = 1 if mode == "min" else -1
    schedule = at_plateau(mode=mode, resolution=resolution, tolerance=0.5)

    def loss(removed: int) -> float:
        return 4.0 + sign * (2.0 if 0 < removed <= limit else 0.0 if removed == 0 else 2.0001)

    answer, trials = search(schedule, 1.0, loss, kept=kept, least=least)
    removed = 0 if answer is None else kept - answer
    exact = min(limit, max(0, kept - max(1, least)))
    assert exact - max(0, resolution * (exact + 1) / (1 - resolution)) <= removed <= exact
    assert len(trials) <= 2 + math.log2(1000) + math.log2(1 / max(resolution, 1e-3))
    assert schedule.done == (removed == 0 or kept - removed <= max(1, least))
    assert all(max(1, least) <= kept - trial or trial == 0 for trial in trials)


def test_the_target_is_not_passed() -> None:
    schedule = at_plateau(target=0.75)
    assert search(schedule, 1.0, lambda n: 1.0)[0] == 250
    assert schedule.done
    again = at_plateau(target=0.75)
    assert search(again, 1.0, lambda n: 1.0, kept=250) == (None, [])
    assert again.done


def test_a_loss_that_is_not_a_number_is_beyond_the_tolerance() -> None:
    answer, _ = search(at_plateau(resolution=0.0), 1.0, lambda n: 1.0 if n <= 7 else math.nan)
    assert answer == 993
    with pytest.raises(
        NonFiniteError, match=r"evaluate\(\) of ThresholdSearch must be finite, but"
    ):
        search(at_plateau(), 1.0, lambda n: math.nan)


def test_after_a_removal_the_plateau_is_measured_again_from_the_next_metric() -> None:
    schedule = at_plateau()
    assert search(schedule, 1.0, lambda n: 1.0)[0] == 1
    assert search(schedule, 9.0) == (None, [])  # worse than before the removal, and the best since
    assert schedule.state_dict() == {"best": 9.0, "waited": 0, "exhausted": True}


def test_a_restored_search_continues_as_the_original() -> None:
    original = at_plateau()
    restored = ThresholdSearch(evaluate=lambda: 0.0, patience=1)
    restored.load_state_dict(original.state_dict())
    assert search(restored, 1.0) == search(original, 1.0)
    assert restored.state_dict() == original.state_dict()
    assert restored.done == original.done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluate": 0.5}, "evaluate must be a function without arguments .* but is 0.5"),
        ({"tolerance": 0}, "tolerance must be above 0, but is 0"),
        ({"patience": 0}, "patience must be at least 1, but is 0"),
        ({"improvement": 5}, "but is 5: pass improvement=0.05 for 5 percent"),
        ({"target": 95}, "but is 95: pass target=0.95 for 95 percent"),
        ({"mode": "low"}, "mode must be 'max' or 'min', but is 'low'"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunusError, match=message):
        ThresholdSearch(**{"evaluate": lambda: 0.0, **arguments})


@torch.no_grad()
def loss_of(model: nn.Module) -> float:
    return float(F.cross_entropy(model.eval()(INPUTS[500:]), LABELS[500:]))


def trained_pruner(
    evaluate: Callable[[nn.Module], float], **arguments: Any
) -> tuple[Any, torch.optim.Optimizer, Pruner]:
    """Return a trained model, its optimizer, and a pruner that searches at the second step."""
    model = classifier()
    optimizer = sgd(model)
    schedule = ThresholdSearch(
        # Bound to the model, which a copy of the schedule must not copy.
        evaluate=functools.partial(evaluate, model),
        patience=1,
        **arguments,
    )
    pruner = magnitude_pruner(model, optimizer, schedule=schedule, mode="min", keep_best=False)
    for _ in range(5):
        epoch(model, optimizer)
    pruner.step(loss_of(model))
    return model, optimizer, pruner


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner) -> Any:
    """Return a copy of all that a trial must leave as it is."""
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    training = [module.training for module in model.modules()]
    states = [model.state_dict(), optimizer.state_dict(), pruner.state_dict()]
    return copy.deepcopy([*states, gradients, training, pruner.masks.kept])


@pytest.mark.slow
def test_the_removal_is_the_largest_whose_loss_is_within_the_tolerance() -> None:
    model, _, pruner = trained_pruner(loss_of, tolerance=0.2, resolution=0.0)
    bound = 1.2 * loss_of(model)
    dense = copy.deepcopy(model.state_dict())
    seen = pruner.step(loss_of(model))
    assert seen.removed > 0
    assert loss_of(model) <= bound
    # The reference removes one weight more from a copy of the dense network.
    reference = classifier()
    reference.load_state_dict(dense)
    magnitude_pruner(reference, sgd(reference)).prune(kept=pruner.masks.kept - 1)
    assert loss_of(reference) > bound


def test_trials_measure_the_model_without_the_removed_weights_and_restore_it() -> None:
    zeros: list[int] = []

    def evaluate(model: Any) -> float:
        zeros.append(sum(int((w == 0).sum()) for w in (model[0].weight, model[4].weight)))
        model.train()  # changes the running statistics of the batch norm
        with torch.enable_grad():
            model(INPUTS[:50])
        model.eval()
        return 1.0 if len(zeros) == 1 else 9.0

    model, optimizer, pruner = trained_pruner(evaluate)
    model.train()
    before = everything(model, optimizer, pruner)
    assert pruner.step(loss_of(model)).removed == 0
    model.train()
    after = everything(model, optimizer, pruner)
    counts = before[2].pop("schedule"), after[2].pop("schedule")
    assert counts[1]["exhausted"]
    assert after[2].pop("validations") == before[2].pop("validations") + 1
    assert len(json.loads(after[2].pop("history"))) == 1 + len(json.loads(before[2].pop("history")))
    assert same(after, before)
    # 736 weights, of which one of each layer stays; the first call measures all of them.
    assert zeros == [0, 367, 183, 91, 45, 22, 11, 5, 2, 1]


@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_a_trial_changes_nothing(call: int, error: type[BaseException]) -> None:
    calls: list[int] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(1)
        model.train()
        model(INPUTS[:50])
        if len(calls) == call:
            raise error("no data")
        return 1.0

    model, optimizer, pruner = trained_pruner(evaluate)
    metric = loss_of(model)
    before = everything(model, optimizer, pruner)
    with pytest.raises(error, match="no data"):
        pruner.step(metric)
    assert same(everything(model, optimizer, pruner), before)
    assert pruner.step(metric).removed == 734


def test_an_evaluation_that_trains_is_rejected() -> None:
    def evaluate(model: nn.Module) -> float:
        with torch.enable_grad():
            epoch(model, optimizer)
        return 1.0

    model, optimizer, pruner = trained_pruner(evaluate)
    with pytest.raises(PrunusError, match=r"took 10 steps of the optimizer, but must only measure"):
        pruner.step(loss_of(model))
    assert pruner.sparsity == 0.0


def test_an_evaluation_that_returns_no_number_is_rejected() -> None:
    def evaluate(_: nn.Module) -> Any:
        return None

    model, _, pruner = trained_pruner(evaluate)
    with pytest.raises(
        ArgumentTypeError, match=r"the result of evaluate\(\) must be a number, but is"
    ):
        pruner.step(loss_of(model))


def test_the_metric_itself_needs_the_mode_of_the_pruner() -> None:
    model, _, pruner = trained_pruner(loss_of, mode="max")
    with pytest.raises(
        ArgumentError, match=r"pass ThresholdSearch\(mode=\"min\"\), or an evaluate"
    ):
        pruner.step(loss_of(model))
    assert pruner.sparsity == 0.0


def test_random_scores_remove_the_weights_of_the_trial() -> None:
    tried: dict[int, torch.Tensor] = {}

    def evaluate(model: Any) -> float:
        zeros = model[0].weight == 0
        tried[int(zeros.sum()) + int((model[4].weight == 0).sum())] = zeros
        return 1.0 if len(tried) < 3 else 9.0

    model = classifier()
    schedule = ThresholdSearch(evaluate=functools.partial(evaluate, model), patience=1)
    pruner = magnitude_pruner(model, sgd(model), schedule=schedule, score=RandomScore(), mode="min")
    pruner.step(1.0)
    removed = pruner.step(1.0).removed
    assert torch.equal(model[0].weight == 0, tried[removed])


def test_a_search_starts_and_ends_with_nothing_waited_for() -> None:
    schedule = ThresholdSearch(evaluate=lambda: 0.0, patience=1)
    assert schedule.state_dict() == {"best": None, "waited": 0, "exhausted": False}
    assert not schedule.done
    assert search(schedule, 1.0) == (None, [])
    answer, _ = search(schedule, 1.0, lambda removed: 1.0 if removed == 0 else 9.0)
    assert answer is None
    assert schedule.state_dict() == {"best": 1.0, "waited": 0, "exhausted": True}


@pytest.mark.parametrize("best", [None, 0.5])
def test_a_restored_search_has_the_same_state(best: float | None) -> None:
    state = {"best": best, "waited": 3, "exhausted": True}
    schedule = ThresholdSearch(evaluate=lambda: 0.0)
    schedule.load_state_dict(state)
    assert schedule.state_dict() == state
    assert schedule.done
