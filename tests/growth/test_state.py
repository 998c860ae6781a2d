"""The state of growth: resumed runs equal unstopped ones, and other states are rejected."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from growth.test_around_training import GROWTHS
from helpers.errors import message_of
from helpers.pruners import magnitude_pruner
from helpers.pruning import accuracy, classifier, epoch
from helpers.states import same
from prunus import (
    CheckpointError,
    FisherScore,
    GradualPruning,
    Growth,
    OneShot,
    Pruner,
    RandomScore,
    RelevancePenalty,
    SoftGrowth,
)
from prunus.growth import AlternatingGrowth, GradientGrowth, RandomGrowth

METHODS: dict[str, dict[str, Any]] = {
    "soft": {"growth": SoftGrowth(until=75, every=3), "score": FisherScore(0.9)},
    "random": {"growth": RandomGrowth(every=7, fraction=0.4, until=85)},
    "gradient": {"growth": GradientGrowth(every=4, until=75), "score": RandomScore()},
    "alternating": {
        "growth": AlternatingGrowth(sparse=11, dense=4, until=84),
        "schedule": OneShot(sparsity=0.8, at=5),
    },
}


def start(name: str, dtype: torch.dtype) -> tuple[nn.Sequential, torch.optim.Optimizer, Pruner]:
    model = classifier().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = GradualPruning(sparsity=0.8, end=60, every=4)
    arguments = {"schedule": schedule, **METHODS[name]}
    penalty = RelevancePenalty(0.01, apply="decoupled")
    return model, optimizer, magnitude_pruner(model, optimizer, penalty, **arguments)


def resume(parts: tuple[nn.Sequential, torch.optim.Optimizer, Pruner], epochs: int) -> None:
    model, optimizer, pruner = parts
    for _ in range(epochs):
        epoch(model, optimizer)
        pruner.step(accuracy(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("complete", [False, True])
def test_a_resumed_run_equals_an_unstopped_one_to_the_last_bit(
    name: str, stop: int, dtype: torch.dtype, complete: bool
) -> None:
    whole = start(name, dtype)
    torch.manual_seed(7)
    resume(whole, 10)

    first = start(name, dtype)
    torch.manual_seed(7)
    resume(first, stop)
    file = io.BytesIO()
    state: dict[str, Any] = {
        "model": first[0].state_dict(),
        "optimizer": first[1].state_dict(),
        "pruner": first[2].state_dict(complete=complete),
        "rng": torch.get_rng_state(),
    }
    torch.save(state, file)
    resume(first, 1)  # what happens after the checkpoint must not leak into it
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = start(name, dtype)
    resume(second, 1)  # nor may what happened before it was loaded
    second[0].load_state_dict(state["model"])
    second[1].load_state_dict(state["optimizer"])
    second[2].load_state_dict(state["pruner"])
    torch.set_rng_state(state["rng"])
    resume(second, 10 - stop)

    assert second[2].sparsity == whole[2].sparsity
    assert same(dict(second[0].state_dict()), dict(whole[0].state_dict()))
    assert same(second[2].state_dict(), whole[2].state_dict())
    assert second[2].done == whole[2].done


def test_latent_weights_are_those_that_are_removed() -> None:
    model, optimizer, pruner = start("soft", torch.float32)
    epoch(model, optimizer)
    latent = pruner.state_dict()["latent"]
    assert list(latent) == list(pruner.masks)
    for name, mask in pruner.masks.items():
        assert not latent[name][mask].count_nonzero()
        assert latent[name][~mask].all()
    for _ in range(8):
        epoch(model, optimizer)
    assert pruner.state_dict()["latent"] == {}
    rule = {"ended": True, "target": None}
    assert pruner.state_dict()["growth"] == {"type": "SoftGrowth", "rule": rule}


def test_complete_state_has_a_place_for_latent_weights_alone_where_they_are_needed() -> None:
    for name in METHODS:
        _, _, pruner = start(name, torch.bfloat16)
        places = pruner.state_dict(complete=True)["latent"]
        assert list(places) == (list(pruner.masks) if name == "soft" else [])
        assert all(place.dtype == torch.float32 for place in places.values())


def pruner_of(growth: Growth | None) -> Pruner:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return magnitude_pruner(model, optimizer, growth=growth)


ALL: dict[str, Growth | None] = {**GROWTHS, "none": None}

PAIRS = [(saved, loaded) for saved in ALL for loaded in ALL if saved != loaded]


@pytest.mark.parametrize(("saved", "loaded"), PAIRS)
def test_state_of_another_growth_is_rejected(saved: str, loaded: str) -> None:
    pruner, state = pruner_of(ALL[loaded]), pruner_of(ALL[saved]).state_dict()
    before = pruner.state_dict()
    names = ["None" if ALL[key] is None else type(ALL[key]).__name__ for key in (saved, loaded)]
    message = message_of(lambda: pruner.load_state_dict(state), CheckpointError)
    assert message == (
        f"this is the state of a Pruner with growth={names[0]}, but this one has "
        f"growth={names[1]}: pass the growth that the state was saved with"
    )
    assert same(pruner.state_dict(), before)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "growth must have the entries ['rule', 'type'], but has []"),
        ({"type": 3, "rule": {}}, "the type of growth must be a name, but is 3"),
        ({"type": "SoftGrowth", "rule": 3}, "the rule of growth must be a mapping, but is 3"),
        (
            {"type": "SoftGrowth", "rule": {"ended": True}},
            "the rule of growth must have the entries ['ended', 'target'], but has ['ended']",
        ),
    ],
)
def test_state_of_another_structure_is_rejected(state: dict[str, Any], message: str) -> None:
    pruner = pruner_of(GROWTHS["soft"])
    found = message_of(
        lambda: pruner.load_state_dict(pruner.state_dict() | {"growth": state}), CheckpointError
    )
    assert found == f"this is not the state of a Pruner: {message}"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ended": 1}, "ended must be a bool, but is 1"),
        ({"target": -3}, "target must be at least 0 or None, but is -3"),
        ({"target": "x"}, "target must be a whole number of at least 0 or None, but is 'x'"),
    ],
)
def test_damaged_entry_is_rejected(entry: dict[str, Any], message: str) -> None:
    pruner = pruner_of(GROWTHS["alternating"])
    state = pruner.state_dict()
    state["growth"]["rule"] |= entry
    found = message_of(lambda: pruner.load_state_dict(state), CheckpointError)
    assert found == f"this is not the state of a Pruner: {message}"


def test_latent_weights_of_another_shape_are_rejected() -> None:
    pruner = pruner_of(GROWTHS["soft"])
    state = pruner.state_dict()
    state["latent"] = {"0.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"0\.weight must have shape \(32, 20\), but has"):
        pruner.load_state_dict(state)


def test_number_of_weights_to_keep_outlasts_a_dense_phase() -> None:
    _, _, pruner = first = start("alternating", torch.float32)
    resume(first, 2)
    pruner.load_state_dict(pruner.state_dict() | {"steps": 26})
    pruner.masks["0.weight"].fill_(True)
    state = pruner.state_dict()
    _, _, other = second = start("alternating", torch.float32)
    other.load_state_dict(state)
    assert other.sparsity < 0.5
    resume(second, 1)
    assert other.sparsity == 1 - round(0.2 * 736) / 736
