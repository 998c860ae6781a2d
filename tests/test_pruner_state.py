"""The pruner's state: resumed runs equal unstopped ones, and other states are refused whole."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.pruners import coupled_penalty, magnitude_pruner
from helpers.pruning import accuracy, classifier, epoch, sgd
from helpers.states import same
from prunus import (
    CheckpointError,
    ExponentialRelevance,
    FisherScore,
    GradualPruning,
    IterativePruning,
    LearningRateStrength,
    LinearDecayStrength,
    MagnitudeScore,
    MovementScore,
    OneShot,
    Pruner,
    PrunusError,
    RandomScore,
    RelevancePenalty,
    Schedule,
    Score,
    SensitivityScore,
    TaylorScore,
)

RESUMABLE: dict[str, Callable[[], tuple[RelevancePenalty, Schedule, Score]]] = {
    "iterative, linear strength": lambda: (
        coupled_penalty(LinearDecayStrength(0.01, steps=10)),
        IterativePruning(fraction=0.15, patience=4),
        TaylorScore(),
    ),
    "iterative, fisher": lambda: (
        coupled_penalty(0.01, apply="decoupled"),
        IterativePruning(fraction=0.15, patience=4),
        FisherScore(smoothing=0.9),
    ),
    "iterative, automatic strength": lambda: (
        RelevancePenalty(),
        IterativePruning(),
        FisherScore(),
    ),
    "oneshot, sensitivity": lambda: (
        coupled_penalty(0.01, smoothing=0.9),
        OneShot(sparsity=0.8, at=60),
        SensitivityScore(),
    ),
    "gradual, movement": lambda: (
        coupled_penalty(0.01),
        GradualPruning(sparsity=0.9, begin=3, end=70, every=4),
        MovementScore(),
    ),
    "gradual, decoupled, random": lambda: (
        RelevancePenalty(
            LearningRateStrength(0.02), ExponentialRelevance(0.2, True), apply="decoupled"
        ),
        GradualPruning(sparsity=0.9, begin=3, end=70, every=4),
        RandomScore(seed=4),
    ),
    "gradual, smoothed": lambda: (
        coupled_penalty(0.01, ExponentialRelevance(0.2, True), smoothing=0.9),
        GradualPruning(sparsity=0.9, begin=3, end=70, every=4),
        MagnitudeScore(),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", RESUMABLE.values(), ids=RESUMABLE)
@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:.*the shrinkage is rounded")
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
    state = magnitude_pruner(model, sgd(model)).state_dict()
    assert state["masks"]["weight"].numel() == 12_500


def test_the_state_of_another_model_is_refused() -> None:
    model, other = classifier(), nn.Linear(3, 3)
    pruner = magnitude_pruner(model, sgd(model))
    with pytest.raises(CheckpointError, match="missing 0.weight, 4.weight; unknown weight"):
        pruner.load_state_dict(magnitude_pruner(other, sgd(other)).state_dict())
    with pytest.raises(CheckpointError, match="not the state of a Pruner: it lacks masks"):
        pruner.load_state_dict({"steps": 1})
    assert pruner.sparsity == 0.0


LOAD = r"\. Load the state saved with this model$"


def refused_whole(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    """Make sure that a state with this change is refused, and leaves the pruner as it is."""
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
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
        (
            {
                "schedule": {
                    "waited": "x",
                    "reached": False,
                    "fraction": 0.1,
                    "recovering": 0,
                    "descent": 0,
                    "margins": [],
                }
            },
            "invalid literal",
        ),
        (
            {"schedule": {"waited": 1}},
            "expected .*'reached', 'recovering', 'waited'., got .'waited'.",
        ),
        ({"steps": "x"}, "steps must be a whole number of at least 0, but is 'x'"),
        ({"prunings": None}, "prunings must be a whole number of at least 0, but is None"),
        ({"dense_metric": "x"}, "dense_metric must be a finite number or None, but is 'x'"),
        ({"strength": None}, "strength must be a mapping, but is None"),
        (
            {
                "strength": {
                    "validations": 0,
                    "steps_since_pruning": -1,
                    "interval": 0,
                    "peak_lrs": 3,
                }
            },
            "steps_since_pruning must be at least 0, but is -1; steps_since_validation must be a "
            "whole number of at least 0, but is None; peak_lrs must be a list of .*, but is 3",
        ),
        ({"best": {}}, "best lacks kept, metric, model, masks"),
    ],
)
def test_a_damaged_state_is_refused_whole(change: dict[str, Any], message: str) -> None:
    refused_whole(lambda _: change, f"not the state of .*Pruner: .*{message}")


def test_a_state_that_is_no_mapping_is_rejected() -> None:
    model = classifier()
    with pytest.raises(CheckpointError, match="it must be a mapping, but is None"):
        magnitude_pruner(model, sgd(model)).load_state_dict(None)  # type: ignore[arg-type]


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
        (lambda _: {"averages": {"0.weight": 3}}, "0.weight must be a tensor, but is int" + LOAD),
        (
            lambda _: {"averages": {"0.weight": torch.ones(2)}},
            r"0.weight must have shape \(32, 20\), but has \(2,\)" + LOAD,
        ),
        (
            lambda _: {"averaged": {"0.weight": "x"}},
            "the count of 0.weight must be .*, but is 'x'" + LOAD,
        ),
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
            "missing 0.weight, 0.bias, .*; unknown junk" + LOAD,
        ),
        (
            lambda state: {
                "best": {
                    **state["best"],
                    "model": {**state["best"]["model"], "0.weight": torch.ones(2)},
                }
            },
            r"0.weight must have shape \(32, 20\), but has \(2,\)" + LOAD,
        ),
    ],
)
def test_the_state_of_another_model_is_refused_whole(change: Any, message: str) -> None:
    refused_whole(change, f"^(this is the state|the masks are) of another model:? {message}")


def test_a_pruner_cannot_be_copied() -> None:
    model = classifier()
    pruner = magnitude_pruner(model, sgd(model))
    with pytest.raises(
        PrunusError, match=r"cannot be copied or pickled: save pruner.state_dict\(\)"
    ):
        copy.deepcopy(pruner)


@pytest.mark.parametrize("key", ["score", "averages", "remainders"])
def test_state_tensors_of_other_shapes_are_rejected(key: str) -> None:
    model = classifier()
    pruner = Pruner(model, sgd(model), coupled_penalty(0.1, smoothing=0.9), score=TaylorScore())
    epoch(model, pruner.optimizers[0])
    state = pruner.state_dict()
    wrong = torch.ones(3, 4)
    state[key] = {"0.weight": {"product": wrong} if key == "score" else wrong}
    with pytest.raises(
        CheckpointError, match=r"model: .*0.weight must have shape \(32, 20\), but has \(3, 4\)"
    ):
        pruner.load_state_dict(state)


def test_loaded_state_tensors_take_the_memory_format_of_the_weights() -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalty = coupled_penalty(0.1, ExponentialRelevance(0.2, relative=True), smoothing=0.9)
        return model, optimizer, Pruner(model, optimizer, penalty, score=FisherScore())

    def steps(parts: tuple[nn.Module, torch.optim.Optimizer, Pruner], count: int) -> None:
        for _ in range(count):
            parts[1].zero_grad()
            parts[0](torch.randn(4, 3, 9, 9)).square().mean().backward()
            parts[1].step()

    whole, second = start(), start()
    steps(whole, 5)
    state = whole[2].state_dict()
    for averages in state["averages"], *state["score"].values():
        for name, tensor in averages.items():  # as a file gives it back
            averages[name] = tensor.clone(memory_format=torch.contiguous_format)
    second[0].load_state_dict(whole[0].state_dict())
    second[2].load_state_dict(state)
    for parts in whole, second:
        torch.manual_seed(1)
        steps(parts, 5)
    for one, other in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)
    for name, memory in whole[2].state_dict()["score"].items():
        assert torch.equal(memory["fisher"], second[2].state_dict()["score"][name]["fisher"])


def test_a_state_that_is_refused_changes_nothing() -> None:
    model, other = classifier(), classifier()
    iterative = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    once = magnitude_pruner(other, sgd(other), schedule=OneShot(sparsity=0.5))
    once.step(0.9)
    with pytest.raises(PrunusError, match="not the state of a IterativePruning"):
        iterative.load_state_dict(once.state_dict())
    assert iterative.sparsity == 0.0
    assert model[0].weight.all()


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
    pruner = magnitude_pruner(model, sgd(model), schedule=IterativePruning(), floor=0.5)
    pruner.step(0.9)
    resumed = magnitude_pruner(other, sgd(other), schedule=IterativePruning(), floor=0.5)
    resumed.load_state_dict(pruner.state_dict())
    other.load_state_dict(model.state_dict())
    resumed.finish()
    pruner.finish()
    assert same(dict(other.state_dict()), dict(model.state_dict()))
