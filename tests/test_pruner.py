"""The pruner as a whole: real training, the floor, what is delivered, and resuming."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.data import normal
from helpers.models import normalized_network
from helpers.states import same, states_equal
from prunus import (
    CheckpointError,
    ExponentialRelevance,
    FloorNotReachedError,
    GradualPruning,
    IterativePruning,
    LearningRateStrength,
    LinearDecayStrength,
    MagnitudeScore,
    Masks,
    NonFiniteError,
    OneShot,
    Pruner,
    PrunusError,
    RandomScore,
    RelevancePenalty,
    Schedule,
    Score,
    TaylorScore,
    select,
)
from prunus.penalties.relevance import Apply


def classifier() -> Any:
    return normalized_network()


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)


# Five of the twenty inputs decide the class; a pruner has fifteen to find irrelevant.
INPUTS = normal(600, 20, seed=1)
LABELS = (INPUTS[:, :5] @ normal(5, 3, seed=2)).argmax(1)


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for batch in torch.split(torch.randperm(500), 50):
        optimizer.zero_grad()
        inputs = INPUTS[batch].to(next(model.parameters()).dtype)
        F.cross_entropy(model(inputs), LABELS[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    model.eval()
    inputs = INPUTS[500:].to(next(model.parameters()).dtype)
    return float((model(inputs).argmax(1) == LABELS[500:]).double().mean())


def test_iterative_pruning_delivers_the_sparsest_state_above_the_floor() -> None:
    model = classifier()
    optimizer = sgd(model)
    for _ in range(15):
        epoch(model, optimizer)
    pruner = Pruner(
        model,
        optimizer,
        RelevancePenalty(
            LearningRateStrength(0.02), ExponentialRelevance(0.2, relative=True), apply="decoupled"
        ),
        IterativePruning(fraction=0.2),
        floor="dense-0.03",
    )
    met: list[tuple[int, float]] = []
    dense = accuracy(model)
    for _ in range(40):
        kept, metric = pruner.masks.kept, accuracy(model)
        seen = pruner.step(metric)
        assert seen.met == (metric >= dense - 0.03)
        assert seen.removed == (round(0.2 * kept) if seen.met else 0)
        assert pruner.masks.kept == kept - seen.removed
        if seen.met:
            met.append((kept, -metric))
        epoch(model, optimizer)
    assert any(kept < 736 for kept, _ in met)
    pruner.finish()
    kept, negative = min(met)
    assert pruner.masks.kept == kept
    assert accuracy(model) == -negative >= dense - 0.03
    weights = [model[0].weight, model[4].weight]
    assert sum(int(w.count_nonzero()) for w in weights) == kept
    # It found out which inputs matter: nearly all that is left of the first layer reads those.
    assert pruner.sparsity > 0.8
    assert model[0].weight[:, :5].count_nonzero() > 3 * model[0].weight[:, 5:].count_nonzero()


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
def test_weights_that_the_loss_does_not_depend_on_are_removed_first(apply: Apply) -> None:
    """Of ten inputs five are always zero; magnitude alone cannot tell which."""

    def kept_dead(strength: float) -> int:
        torch.manual_seed(0)
        model = nn.Linear(10, 40)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalty = RelevancePenalty(
            LearningRateStrength(strength), ExponentialRelevance(0.01), apply=apply
        )
        pruner = Pruner(model, optimizer, penalty)
        inputs = torch.randn(64, 10) * (torch.arange(10) < 5)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), torch.arange(64) % 40).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        pruner.prune(sparsity=0.5)
        return int(model.weight[:, 5:].count_nonzero())

    assert kept_dead(0.0) > 40
    assert kept_dead(0.5 if apply == "decoupled" else 5.0) == 0


def test_a_minimised_metric_may_not_exceed_its_floor() -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor="dense*1.1", mode="min")
    assert pruner.floor is None
    assert pruner.step(2.0).met
    assert pruner.floor == pytest.approx(2.2)
    seen = pruner.step(2.3)
    assert (seen.met, seen.removed, seen.best) == (False, 0, False)
    assert pruner.step(2.1).met


def test_of_equally_sparse_states_the_best_is_delivered() -> None:
    model = nn.Linear(4, 1, bias=False)
    pruner = Pruner(model, sgd(model), schedule=GradualPruning(sparsity=0.5, end=10**9), floor=0.5)
    for value, metric in ((1.0, 0.6), (2.0, 0.9), (3.0, 0.7), (4.0, 0.4)):
        model.weight.data.fill_(value)
        pruner.step(metric)
    pruner.finish()
    assert model.weight.tolist() == [[2.0] * 4]


def test_a_denser_state_never_replaces_a_sparser_one() -> None:
    model = nn.Linear(4, 1, bias=False)
    pruner = Pruner(model, sgd(model), schedule=Schedule(), floor=0.5)
    pruner.prune(sparsity=0.5)
    assert pruner.step(0.6).best
    pruner.masks.load_packed({"weight": torch.tensor([[255]], dtype=torch.uint8)})
    assert not pruner.step(0.9).best


def test_finishing_without_a_state_that_met_the_floor_is_rejected() -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.9)
    before = copy.deepcopy(model.state_dict())
    assert pruner.step(0.8).removed == 0
    with pytest.raises(FloorNotReachedError, match=r"no validation met the floor 0\.9 \(0\.9\)"):
        pruner.finish()
    assert same(model.state_dict(), before)


def test_gradual_pruning_reaches_the_exact_count_while_training() -> None:
    model = classifier()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, schedule=GradualPruning(kept=77, begin=5, end=40, every=7))
    history = []
    for _ in range(6):
        epoch(model, optimizer)
        history.append(pruner.masks.kept)
    assert history[-1] == history[-2] == 77
    assert history == sorted(history, reverse=True)
    assert sum(int(w.count_nonzero()) for w in (model[0].weight, model[4].weight)) == 77
    assert pruner.done


def test_a_step_counts_once_with_a_closure_and_the_penalty_acts_on_each_call() -> None:
    def trained(wrapped: bool) -> torch.Tensor:
        model = nn.Linear(5, 1, bias=False)
        model.weight.data.copy_(torch.arange(1.0, 6.0))
        optimizer = sgd(model)
        pruner = Pruner(model, optimizer, RelevancePenalty(0.1), OneShot(sparsity=0.4, at=2))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(torch.ones(1, 5)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for number in range(3):
            if not wrapped:
                closure()
                optimizer.step()
            elif number % 2:
                optimizer.step(closure)  # type: ignore[arg-type]
            else:
                optimizer.step(closure=closure)  # type: ignore[arg-type]
            assert pruner.sparsity == (0.4 if number >= 1 else 0.0)
        return model.weight.detach()

    assert torch.equal(trained(wrapped=True), trained(wrapped=False))


RESUMABLE: dict[str, Callable[[], tuple[RelevancePenalty, Schedule, Score]]] = {
    "iterative, linear strength": lambda: (
        RelevancePenalty(LinearDecayStrength(0.01, steps=10)),
        IterativePruning(fraction=0.15, patience=4),
        TaylorScore(),
    ),
    "gradual, decoupled, random": lambda: (
        RelevancePenalty(
            LearningRateStrength(0.02), ExponentialRelevance(0.2, True), apply="decoupled"
        ),
        GradualPruning(sparsity=0.9, begin=3, end=70, every=4),
        RandomScore(seed=4),
    ),
    "gradual, smoothed": lambda: (
        RelevancePenalty(0.01, ExponentialRelevance(0.2, True), smoothing=0.9),
        GradualPruning(sparsity=0.9, begin=3, end=70, every=4),
        MagnitudeScore(),
    ),
}


@pytest.mark.parametrize("make", RESUMABLE.values(), ids=RESUMABLE)
@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:.*the optimizer rounds")
def test_a_resumed_run_equals_an_unstopped_one_to_the_last_bit(
    make: Callable[[], tuple[RelevancePenalty, Schedule, Score]], stop: int, dtype: torch.dtype
) -> None:
    def start() -> tuple[nn.Sequential, torch.optim.Optimizer, Pruner]:
        model = classifier().to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        penalty, schedule, score = make()
        return model, optimizer, Pruner(model, optimizer, penalty, schedule, score=score)

    def go_on(parts: tuple[nn.Sequential, torch.optim.Optimizer, Pruner], epochs: int) -> None:
        model, optimizer, pruner = parts
        for _ in range(epochs):
            epoch(model, optimizer)
            pruner.step(accuracy(model))

    whole = start()
    torch.manual_seed(7)
    go_on(whole, 9)
    whole[2].finish()

    first = start()
    torch.manual_seed(7)
    go_on(first, stop)
    file = io.BytesIO()
    torch.save(
        {
            "model": first[0].state_dict(),
            "optimizer": first[1].state_dict(),
            "pruner": first[2].state_dict(),
            "rng": torch.get_rng_state(),
        },
        file,
    )
    go_on(first, 1)  # what happens after the checkpoint must not leak into it
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = start()
    torch.manual_seed(99)
    second[0].load_state_dict(state["model"])
    second[1].load_state_dict(state["optimizer"])
    second[2].load_state_dict(state["pruner"])
    torch.set_rng_state(state["rng"])
    go_on(second, 9 - stop)
    second[2].finish()

    assert second[2].sparsity == whole[2].sparsity > 0.3
    assert not any(second[2].masks.differences(whole[2].masks).values())
    for mine, theirs in zip(
        second[0].state_dict().values(), whole[0].state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_masks_are_saved_eight_weights_to_a_byte() -> None:
    model = nn.Linear(1000, 100)
    state = Pruner(model, sgd(model)).state_dict()
    assert state["masks"]["weight"].numel() == 12_500


def test_the_state_of_another_model_is_refused() -> None:
    model, other = classifier(), nn.Linear(3, 3)
    pruner = Pruner(model, sgd(model))
    with pytest.raises(CheckpointError, match="missing 0.weight, 4.weight; unknown weight"):
        pruner.load_state_dict(Pruner(other, sgd(other)).state_dict())
    with pytest.raises(CheckpointError, match="not the state of a Pruner: it lacks masks"):
        pruner.load_state_dict({"steps": 1})
    assert pruner.sparsity == 0.0


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(PrunusError, match=r"but it lacks 0\.weight, 4\.weight: build it from this"):
        Pruner(classifier(), sgd(classifier()))


def test_an_optimizer_of_a_part_is_refused_unless_the_rest_is_left_out() -> None:
    model = classifier()
    with pytest.raises(PrunusError, match=r"but it lacks 0\.weight: build it"):
        Pruner(model, sgd(model[4]))
    pruner = Pruner(model, sgd(model[4]), selection=select(model, exclude="0"))
    assert pruner.prune(sparsity=0.5) == 48


@pytest.mark.parametrize("metric", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_rejected(metric: float) -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    with pytest.raises(NonFiniteError, match="the validation metric must be finite, but is"):
        pruner.step(metric)
    assert pruner.sparsity == 0.0


@pytest.mark.parametrize("metric", ["good", "0.9", [0.9], {"accuracy": 0.9}, torch.ones(2)])
def test_a_metric_that_is_no_number_is_rejected(metric: Any) -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    for call in (pruner.step, pruner.consider):
        with pytest.raises(PrunusError, match="the validation metric must be a number, but is"):
            call(metric)
    assert pruner.sparsity == 0.0


def test_a_metric_may_be_a_tensor_of_one_number() -> None:
    model = classifier()
    metric: Any = torch.tensor(0.75)
    seen = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5).step(metric)
    assert (type(seen.metric), seen.metric, seen.met) == (float, 0.75, True)


def refused_whole(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    """Make sure that a state with this change is refused, and leaves the pruner as it is."""
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    pruner.step(0.9)
    state = pruner.state_dict()
    pruner.step(0.9)
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(CheckpointError, match=message):
        pruner.load_state_dict({**state, **change(state)})
    assert same(pruner.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": None}, "masks must be a mapping, but is None"),
        ({"schedule": None}, "schedule must be a mapping, but is None"),
        ({"schedule": {"waited": "x", "reached": False}}, "invalid literal"),
        ({"schedule": {"waited": 1}}, "expected .'reached', 'waited'., got .'waited'."),
        ({"steps": "x"}, "steps must be a whole number of at least 0, but is 'x'"),
        ({"prunings": None}, "prunings must be a whole number of at least 0, but is None"),
        ({"dense_metric": "x"}, "dense_metric must be a finite number or None, but is 'x'"),
        ({"best": {}}, "best lacks kept, metric, model, masks"),
    ],
)
def test_a_damaged_state_is_refused_whole(change: dict[str, Any], message: str) -> None:
    refused_whole(lambda _: change, f"not the state of .*Pruner: .*{message}")


def test_a_state_that_is_no_mapping_is_rejected() -> None:
    model = classifier()
    with pytest.raises(CheckpointError, match="it must be a mapping, but is None"):
        Pruner(model, sgd(model)).load_state_dict(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": "x"}, "kept must be a whole number of at least 0, but is 'x'"),
        ({"metric": None}, "metric must be a finite number, but is None"),
        (
            {"model": [1], "masks": None},
            r"model must be a mapping, but is \[1\]; masks must be a mapping, but is None",
        ),
    ],
)
def test_a_damaged_best_state_is_refused_whole(change: dict[str, Any], message: str) -> None:
    refused_whole(
        lambda state: {"best": {**state["best"], **change}},
        f"^this is not the state of a Pruner: best: {message}$",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"averages": {"0.weight": 3}}, "it has 0.weight as int$"),
        (
            lambda _: {"averages": {"0.weight": torch.ones(2)}},
            r"it has 0.weight of \(2,\) for \(32, 20\)$",
        ),
        (lambda _: {"averaged": {"0.weight": "x"}}, "it has 0.weight as 'x'$"),
        (
            lambda _: {"masks": {"0.weight": 3, "4.weight": 3}},
            r"0.weight: \(32, 20\) needs torch.uint8 of shape \(32, 3\), got 3, "
            r"4.weight: \(3, 32\) needs torch.uint8 of shape \(3, 4\), got 3$",
        ),
        (
            lambda state: {"best": {**state["best"], "masks": {}}},
            "or selection: missing 0.weight, 4.weight; unknown none$",
        ),
        (
            lambda state: {"best": {**state["best"], "model": {"junk": 3}}},
            "best has no 0.weight, no 0.bias, .*, junk besides$",
        ),
        (
            lambda state: {
                "best": {
                    **state["best"],
                    "model": {**state["best"]["model"], "0.weight": torch.ones(2)},
                }
            },
            r"best has 0.weight of \(2,\) for \(32, 20\)$",
        ),
    ],
)
def test_the_state_of_another_model_is_refused_whole(change: Any, message: str) -> None:
    refused_whole(change, f"^(this is the state|the masks are) of another model:? {message}")


def test_a_step_without_the_metric_that_the_schedule_needs_is_rejected() -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    with pytest.raises(PrunusError, match=r"IterativePruning with floor=0\.5 needs the validation"):
        pruner.step()
    assert Pruner(model, sgd(model), schedule=OneShot(sparsity=0.5)).step().removed == 368


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
        Pruner(model, sgd(model)).prune(**arguments)  # type: ignore[arg-type]


def test_minimum_density_limits_manual_and_scheduled_pruning() -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), min_density=0.5)
    with pytest.raises(PrunusError, match="cannot keep only 74 weights: min_density=0.5 keeps at"):
        pruner.prune(sparsity=0.9)
    assert pruner.sparsity == 0.0
    for schedule in (
        IterativePruning(fraction=0.4, target=0.9),
        IterativePruning(fraction=0.4),
    ):
        model = classifier()
        pruner = Pruner(model, sgd(model), schedule=schedule, floor=0.5, min_density=0.5)
        for _ in range(10):
            pruner.step(0.9)
        assert pruner.done
        assert pruner.sparsity == 0.5


def test_iterative_pruning_never_removes_the_last_weight() -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), min_density=0.0, floor=0.5)
    for _ in range(200):
        pruner.step(0.9)
    assert pruner.done
    assert pruner.masks.kept == 1


def test_a_schedule_may_serve_several_pruners() -> None:
    schedule = OneShot(sparsity=0.5)
    for _ in range(2):
        model = classifier()
        assert Pruner(model, sgd(model), schedule=schedule).step(0.5).removed == 368


@pytest.mark.parametrize("apply", ["gradient", "decoupled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_model_may_change_its_type_between_steps(
    apply: Apply, dtype: torch.dtype, smoothing: float
) -> None:
    model = nn.Linear(20, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)  # without state of its own to convert
    penalty = RelevancePenalty(0.01, apply=apply, smoothing=smoothing)
    Pruner(model, optimizer, penalty, OneShot(sparsity=0.5, at=3), score=TaylorScore())
    for step in range(5):
        if step == 1:
            model.to(dtype)
        optimizer.zero_grad()
        model(torch.ones(3, 20, dtype=model.weight.dtype)).square().sum().backward()
        optimizer.step()
    assert int(model.weight.count_nonzero()) == 50


def test_a_second_penalty_on_the_same_optimizer_is_refused() -> None:
    model = classifier()
    optimizer = sgd(model)
    first = Pruner(model, optimizer, RelevancePenalty(0.1))
    with pytest.raises(PrunusError, match=r"penalty on these tensors already.*call detach\(\)"):
        Pruner(model, optimizer, RelevancePenalty(0.1))
    first.detach()
    Pruner(model, optimizer, RelevancePenalty(0.1))


def test_a_pruner_cannot_be_copied() -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model))
    with pytest.raises(
        PrunusError, match=r"cannot be copied or pickled: save pruner.state_dict\(\)"
    ):
        copy.deepcopy(pruner)


def test_a_metric_of_revived_weights_is_refused() -> None:
    model = classifier()
    dense = copy.deepcopy(model.state_dict())
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    pruner.prune(sparsity=0.5)
    model.load_state_dict(dense)
    with pytest.raises(PrunusError, match=r"removed weights are not zero in 0.weight \(\d+\)"):
        pruner.step(0.9)
    pruner.masks.apply_()
    assert pruner.step(0.9).met


@pytest.mark.parametrize("key", ["score", "averages", "remainders"])
def test_state_tensors_of_other_shapes_are_rejected(key: str) -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), RelevancePenalty(0.1, smoothing=0.9), score=TaylorScore())
    epoch(model, pruner.optimizer)
    state = pruner.state_dict()
    state[key] = {"0.weight": torch.ones(3, 4)}
    with pytest.raises(CheckpointError, match=r"it has 0.weight of \(3, 4\) for \(32, 20\)"):
        pruner.load_state_dict(state)


def test_loaded_state_tensors_take_the_memory_format_of_the_weights() -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalty = RelevancePenalty(0.1, ExponentialRelevance(0.2, relative=True), smoothing=0.9)
        return model, optimizer, Pruner(model, optimizer, penalty)

    def steps(parts: tuple[nn.Module, torch.optim.Optimizer, Pruner], count: int) -> None:
        for _ in range(count):
            parts[1].zero_grad()
            parts[0](torch.randn(4, 3, 9, 9)).square().mean().backward()
            parts[1].step()

    whole, second = start(), start()
    steps(whole, 5)
    state = whole[2].state_dict()
    for averages in state["averages"], state["score"]:
        for name, tensor in averages.items():  # as a file gives it back
            averages[name] = tensor.clone(memory_format=torch.contiguous_format)
    second[0].load_state_dict(whole[0].state_dict())
    second[2].load_state_dict(state)
    for parts in whole, second:
        torch.manual_seed(1)
        steps(parts, 5)
    for one, other in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_average_moves_on_while_the_strength_is_zero() -> None:
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    penalty = RelevancePenalty(LearningRateStrength(1.0), apply="decoupled", smoothing=0.5)
    pruner = Pruner(layer, optimizer, penalty)
    for gradient in (4.0, 2.0, 1.0):
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
    # (4 + 2) / 2, then half way to 1.
    torch.testing.assert_close(pruner.state_dict()["averages"]["weight"], torch.full((1, 2), 2.0))


def test_a_state_that_is_refused_changes_nothing() -> None:
    model, other = classifier(), classifier()
    iterative = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    once = Pruner(other, sgd(other), schedule=OneShot(sparsity=0.5))
    once.step(0.9)
    with pytest.raises(PrunusError, match="not the state of a IterativePruning"):
        iterative.load_state_dict(once.state_dict())
    assert iterative.sparsity == 0.0
    assert model[0].weight.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": 0.1}, "penalty must be a RelevancePenalty or None, but is 0.1"),
        (
            {"schedule": IterativePruning},
            "schedule must be a Schedule or None, but is the class IterativePruning",
        ),
        ({"score": "magnitude"}, "score must be a Score, but is 'magnitude'"),
        (
            {"score": TaylorScore},
            r"score must be a Score, but is the class TaylorScore: .*, TaylorScore\(\.\.\.\)",
        ),
        (
            {"selection": ["0.weight"]},
            "selection must be a Selection, or a function that returns one, .*, but is",
        ),
        ({"masks": [1]}, r"masks must be masks by name or None, but is \[1\]"),
        ({"masks": {"0.weight": 1, "4.weight": 2}}, "0.weight: expected a boolean tensor.* got 1"),
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
        Pruner(**{"model": model, "optimizer": sgd(model), **arguments})


def test_all_arguments_of_another_type_are_reported_at_once() -> None:
    model = classifier()
    with pytest.raises(PrunusError, match="penalty must be .*; min_density must .*; masks must "):
        Pruner(model, sgd(model), 0.1, min_density=2, masks=3)  # type: ignore[arg-type]
    with pytest.raises(
        PrunusError, match="^model must be .*; optimizer must be .*; schedule must "
    ):
        Pruner(3, 3, schedule=3)  # type: ignore[arg-type]


def test_a_score_without_gradients_needs_no_observe_method() -> None:
    class Signed:
        uses_gradient = False

        def compute(
            self, weight: torch.Tensor, memory: torch.Tensor | None, *, uniform: Any
        ) -> torch.Tensor:
            return weight

    class Unsaid:
        compute = Signed.compute

    model = classifier()
    pruner = Pruner(model, sgd(model), score=Signed())  # type: ignore[arg-type]
    pruner.prune(sparsity=0.25)
    epoch(model, pruner.optimizer)
    assert pruner.masks.kept == 552
    with pytest.raises(PrunusError, match="without uses_gradient, observe$"):
        Pruner(classifier(), sgd(model), score=Unsaid())  # type: ignore[arg-type]


class Lookahead(torch.optim.Optimizer):
    """Steps an optimizer and after every second step goes back half the way."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer
        self.slow = [p.detach().clone() for p in self.parameters()]
        self.steps = 0

    def parameters(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.optimizer.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for slow, fast in zip(self.slow, self.parameters(), strict=True):
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)


def test_an_optimizer_around_another_keeps_the_zeros_that_it_makes() -> None:
    model = classifier()
    optimizer = Lookahead(sgd(model))
    pruner = Pruner(model, optimizer)
    epoch(model, optimizer)
    pruner.prune(sparsity=0.75)
    for _ in range(2):
        epoch(model, optimizer)
        assert pruner.masks.revived() == {}


def test_state_of_a_wrapped_optimizer_is_cleared_too() -> None:
    model = classifier()
    within = torch.optim.AdamW(model.parameters())
    optimizer = Lookahead(within)
    pruner = Pruner(model, optimizer)
    epoch(model, optimizer)
    pruner.prune(sparsity=0.75)
    for name, mask in pruner.masks.items():
        average = within.state[model.get_parameter(name)]["exp_avg"]
        assert not average[~mask].any()
        assert average[mask].all()


class Resizing(nn.Linear):
    """Has a buffer that takes the shape of what is loaded."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("seen", torch.ones(1))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.seen = torch.empty_like(state[prefix + "seen"])
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_state_is_loaded_before_its_model_whatever_the_shapes_of_buffers() -> None:
    model, other = Resizing(20, 3), Resizing(20, 3)
    model.seen = torch.arange(3.0)
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    pruner.step(0.9)
    resumed = Pruner(other, sgd(other), schedule=IterativePruning(), floor=0.5)
    resumed.load_state_dict(pruner.state_dict())
    other.load_state_dict(model.state_dict())
    resumed.finish()
    pruner.finish()
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_an_optimizer_without_step_hooks_is_rejected() -> None:
    class Around(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = classifier()
    with pytest.raises(
        PrunusError, match="step hooks, but Around has none: pass the optimizer that it"
    ):
        Pruner(model, Around(sgd(model)))


def test_a_selection_of_another_model_is_refused() -> None:
    model, other = classifier(), classifier()
    optimizer = sgd(nn.ModuleList([model, other]))
    with pytest.raises(
        PrunusError, match=r"the model's own, but 0\.weight, 4\.weight are not: select"
    ):
        Pruner(model, optimizer, selection=select(other))


def test_a_replaced_layer_is_rejected_by_every_call() -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), schedule=IterativePruning(fraction=0.5), floor=0.5)
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


def test_an_infinite_gradient_norm_limit_clips_nothing() -> None:
    limits: Any = (None, math.inf, np.float32(math.inf))
    one, *others = (classifier() for _ in limits)
    for model, limit in zip((one, *others), limits, strict=True):
        optimizer = sgd(model)
        Pruner(model, optimizer, max_grad_norm=limit)
        torch.manual_seed(0)
        epoch(model, optimizer)
    assert all(states_equal(one, other) for other in others)


def test_taylor_needs_the_gradient_of_the_loss_alone() -> None:
    model = classifier()
    with pytest.raises(
        PrunusError, match='TaylorScore needs the gradient of the loss alone.*apply="loss"'
    ):
        Pruner(model, sgd(model), RelevancePenalty(0.1, apply="loss"), score=TaylorScore())


def test_a_minimum_density_of_one_is_rejected() -> None:
    model = classifier()
    with pytest.raises(PrunusError, match=r"min_density must be from 0 to below 1, but is 1\.0"):
        Pruner(model, sgd(model), min_density=1.0)


def test_no_layer_is_emptied_by_default() -> None:
    model = classifier()
    model[0].weight.data.mul_(1e-6)
    pruner = Pruner(model, sgd(model))
    pruner.prune(sparsity=0.99)
    assert [int(mask.sum()) for mask in pruner.masks.values()] == [1, 6]


def test_no_penalty_and_no_schedule_is_the_dense_baseline_to_the_bit() -> None:
    plain, watched = classifier(), classifier()
    one, two = sgd(plain), sgd(watched)
    pruner = Pruner(watched, two)
    for model, optimizer in ((plain, one), (watched, two)):
        torch.manual_seed(5)
        for _ in range(2):
            epoch(model, optimizer)
    pruner.step(0.5)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )


def test_attention_and_recurrent_layers_prune_and_train() -> None:
    cases: tuple[tuple[nn.Module, Callable[[Any], torch.Tensor]], ...] = (
        (nn.MultiheadAttention(8, 2), lambda m: m(*[torch.randn(5, 2, 8)] * 3)[0]),
        (nn.LSTM(8, 6, num_layers=2), lambda m: m(torch.randn(5, 2, 8))[0]),
        (nn.GRU(8, 6), lambda m: m(torch.randn(5, 2, 8))[0]),
        (nn.ConvTranspose1d(8, 4, 3), lambda m: m(torch.randn(2, 8, 5))),
    )
    for layer, run in cases:
        optimizer = sgd(layer)
        pruner = Pruner(layer, optimizer, RelevancePenalty(1e-3))
        pruner.prune(sparsity=0.7)
        for _ in range(3):
            optimizer.zero_grad()
            run(layer).square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        nonzero = sum(int(t.parameter.count_nonzero()) for t in pruner.selection.values())
        assert (
            nonzero
            == pruner.masks.kept
            == pruner.selection.prunable - round(0.7 * pruner.selection.prunable)
        )
        clone = copy.deepcopy(layer)
        assert all(
            torch.equal(a, b) for a, b in zip(clone.parameters(), layer.parameters(), strict=True)
        )


def test_masks_given_at_the_start_are_in_force_at_once() -> None:
    model = classifier()
    selection = select(model)
    masks = Masks(selection)
    masks["0.weight"][:, 5:] = False
    pruner = Pruner(model, sgd(model), selection=selection, masks=masks)
    assert not model[0].weight[:, 5:].any()
    assert pruner.masks.kept == 32 * 5 + 96
