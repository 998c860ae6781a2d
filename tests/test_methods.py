"""Named methods: their parts, their arguments, and training with each."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from helpers.data import tanh_batch
from helpers.errors import message_of
from helpers.models import tanh_network
from helpers.training import train
from prunus import (
    AlternatingGrowth,
    ArgumentError,
    ArgumentTypeError,
    AutomaticStrength,
    ConstantRelevance,
    ConstantStrength,
    ErdosRenyiAllocation,
    ExponentialRelevance,
    FisherScore,
    GlobalAllocation,
    GradientGrowth,
    GradualPruning,
    Growth,
    LearningRateStrength,
    LinearDecayStrength,
    LinearRelevance,
    MagnitudeScore,
    Method,
    MovementScore,
    OneShot,
    RandomGrowth,
    RandomScore,
    RelevancePenalty,
    Schedule,
    SensitivityScore,
    SoftGrowth,
    TaylorScore,
    UniformAllocation,
    method,
)
from prunus._engine.default_method import with_defaults

NAMES = [
    *("prunus", "paper", "lobster", "magnitude", "l2", "l1"),
    *("taylor", "sensitivity", "movement", "random"),
    *("soft", "set", "rigl", "acdc"),
]


def arguments(found: Method, steps: int = 4) -> Any:
    """Return a method's arguments, with a strength where it leaves that open."""
    strength = 1e-3 if found.leaves_strength_open else None
    return found.arguments(strength=strength, steps_per_epoch=steps, total_steps=12)


def test_the_names_are_exactly_these() -> None:
    assert list(prunus.methods) == NAMES
    assert [found.name for found in prunus.methods.values()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_to_an_exact_sparsity(name: str) -> None:
    model = tanh_network(12, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = GradualPruning(sparsity=0.8, end=8, every=2)
    pruner = prunus.Pruner(model, optimizer, **arguments(method(name)), schedule=schedule)
    train(model, optimizer, tanh_batch(), 12)
    # Of 12·16 + 16·3 = 240 prunable weights, round(0.8 · 240) = 192 are removed.
    weights = [layer.weight for layer in model if isinstance(layer, torch.nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    # Weights that return at random are zero until a gradient reaches them, which may be never.
    assert zeros >= 192 if name == "set" else zeros == 192
    assert pruner.sparsity == 192 / 240


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        (
            "paper",
            RelevancePenalty(
                LinearDecayStrength(1e-5, 7), ExponentialRelevance(1.0, False), apply="gradient"
            ),
        ),
        # λ = 1e-4 is twice γ.
        ("lobster", RelevancePenalty(ConstantStrength(5e-5), LinearRelevance(), apply="decoupled")),
        ("l2", RelevancePenalty(1e-3, ConstantRelevance(), power=2, apply="decoupled")),
        ("l1", RelevancePenalty(1e-3, ConstantRelevance(), power=1, apply="decoupled")),
        (
            "prunus",
            RelevancePenalty(
                AutomaticStrength(0.5), ExponentialRelevance(0.2, True), apply="decoupled"
            ),
        ),
        *((name, None) for name in ("magnitude", "taylor", "sensitivity")),
        *((name, None) for name in ("movement", "random", "soft", "set", "rigl", "acdc")),
    ],
)
def test_penalty_is_that_of_the_source(name: str, penalty: RelevancePenalty | None) -> None:
    assert arguments(method(name), 7)["penalty"] == penalty


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("prunus", FisherScore()),
        *((name, MagnitudeScore()) for name in ("paper", "lobster", "magnitude", "l2", "l1")),
        ("taylor", TaylorScore()),
        ("sensitivity", SensitivityScore(0.85, 0.95)),
        ("movement", MovementScore()),
        ("random", RandomScore()),
        *((name, MagnitudeScore()) for name in ("soft", "set", "rigl", "acdc")),
    ],
)
def test_score_is_that_of_the_source(name: str, score: object) -> None:
    assert arguments(method(name))["score"] == score


def test_a_pruner_without_arguments_uses_the_method_of_this_library() -> None:
    model = tanh_network(12, 16, 3)
    pruner = prunus.Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), floor=0.5)
    ours = arguments(method("prunus"))
    assert with_defaults("auto", None, 0.5) == (ours["penalty"], method("prunus").schedule())
    assert pruner.score == ours["score"]
    assert pruner.schedule == method("prunus").schedule()


@pytest.mark.parametrize("schedule", [None, Schedule()])
def test_a_pruner_that_removes_nothing_shrinks_nothing(schedule: Schedule | None) -> None:
    floor = None if schedule is None else 0.5
    assert with_defaults("auto", schedule, floor) == (None, Schedule())


@pytest.mark.parametrize("name", NAMES)
def test_every_method_compares_the_weights_of_all_tensors(name: str) -> None:
    assert arguments(method(name))["allocation"] == GlobalAllocation()


def test_allocation_of_a_method_is_among_its_arguments() -> None:
    for name in ("magnitude", "paper"):  # without and with a penalty
        changed = dataclasses.replace(method(name), allocation=UniformAllocation())
        assert arguments(changed)["allocation"] == UniformAllocation()


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_summary_a_source_and_a_schedule(name: str) -> None:
    found = method(name)
    assert found.summary
    assert not found.summary.endswith(".")
    assert re.search(r"arXiv \d{4}\.\d{5}|NIPS 1989", found.source)
    assert issubclass(found.schedule, prunus.Schedule)


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        ("magnitude", None),
        ("soft", SoftGrowth(until=750, every=10)),
        ("set", RandomGrowth(every=10, until=1000)),
        ("rigl", GradientGrowth(every=10, fraction=0.3, until=750)),
        ("acdc", AlternatingGrowth(sparse=50, dense=50, until=850)),
    ],
)
def test_growth_is_that_of_the_source(name: str, growth: Growth | None) -> None:
    assert method(name).arguments(total_steps=1000)["growth"] == growth


@pytest.mark.parametrize("strength", [0.25, LearningRateStrength(0.5)])
@pytest.mark.parametrize("name", ["paper", "lobster", "l2", "l1"])
def test_passed_strength_replaces_that_of_the_method(name: str, strength: Any) -> None:
    penalty = method(name).arguments(strength=strength)["penalty"]
    assert penalty is not None
    assert penalty.strength == strength


def test_lobster_needs_no_length_of_an_epoch() -> None:
    penalty = method("lobster").arguments()["penalty"]
    assert penalty is not None
    assert penalty.strength == ConstantStrength(5e-5)


@pytest.mark.parametrize(
    ("name", "passed", "message"),
    [
        ("l2", {}, "the method l2 leaves the strength open: pass strength="),
        ("l1", {"steps_per_epoch": 9}, "the method l1 leaves the strength open: pass strength="),
        ("paper", {}, "the strength of the method paper falls over an epoch: pass steps_per_epoch"),
        ("taylor", {"strength": 0.1}, "the method taylor has no penalty, but got strength=0.1"),
        (
            "rigl",
            {},
            "the growth of the method rigl depends on the length of the training: pass total",
        ),
        ("soft", {"total_steps": 0}, "total_steps must be at least 1 or None, but is 0"),
        ("paper", {"steps_per_epoch": 0}, "steps_per_epoch must be at least 1 or None, but is 0"),
        (
            "magnitude",
            {"steps_per_epoch": 1.5, "strength": -1},
            "strength must be at least 0, but is -1; steps_per_epoch must be a whole number",
        ),
    ],
)
def test_missing_or_wrong_argument_is_reported(
    name: str, passed: dict[str, Any], message: str
) -> None:
    assert message in message_of(lambda: method(name).arguments(**passed), ArgumentError)


@pytest.mark.parametrize(("slip", "meant"), [("papr", "paper"), ("L2", "l2"), ("rand", "random")])
def test_unknown_name_suggests_the_nearest_and_lists_all(slip: str, meant: str) -> None:
    assert message_of(lambda: method(slip), ArgumentError) == (
        f"there is no method {slip!r}. Did you mean {meant}? The methods are {', '.join(NAMES)}"
    )


def test_name_of_another_type_is_reported() -> None:
    wrong: Any = 3
    assert message_of(lambda: method(wrong), ArgumentTypeError) == (
        "name must be the name of a method, but is 3"
    )


def test_documented_code_runs() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
    block, other = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    model = tanh_network(12, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names: dict[str, Any] = {"model": model, "optimizer": optimizer, "loader": [0] * 5}
    exec(block, names)
    assert names["arguments"]["penalty"].strength == LinearDecayStrength(1e-5, 5)
    assert names["pruner"].step(0.99).removed == 24  # a tenth of 240
    names["pruner"].detach()
    exec(other, names)
    assert names["pruner"].allocation == ErdosRenyiAllocation()


def test_methods_cannot_be_changed() -> None:
    registry: Any = prunus.methods
    with pytest.raises(TypeError):
        registry["mine"] = registry["l2"]


def test_module_and_mapping_share_the_name() -> None:
    from prunus.methods import methods

    assert prunus.methods is methods


def test_schedule_of_the_pruner_is_free() -> None:
    model = tanh_network(12, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = method("paper").arguments(steps_per_epoch=4)
    pruner = prunus.Pruner(model, optimizer, **found, schedule=OneShot(sparsity=0.5))
    assert pruner.step().removed == 120  # of 12·16 + 16·3
