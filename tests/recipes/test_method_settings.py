"""Settings of named methods, and runs with ``--method``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import prunus, settings, summary
from helpers.errors import message_of
from prunus.methods import methods
from prunus.recipes.method_settings import method_settings
from prunus.recipes.registry import RECIPES, find_recipe
from prunus.scores import FisherScore

BRIEF: dict[str, Any] = {"dense_epochs": 1, "epochs": 2, "floor": "none", "ratio": 5}
GRADUAL: dict[str, Any] = {**BRIEF, "schedule": "gradual", "batch_size": 200}


def ignore(_: str) -> None:
    """Accept a message."""


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", methods)
def test_recipe_builds_the_parts_of_the_method(name: str, recipe: str) -> None:
    own, method = find_recipe(recipe).config, methods[name]
    # Only iterative pruning, which accepts no growth, does without a ratio.
    ratio = ["ratio=5"] if method.growth is not None and not own.ratio else []
    strength_setting = ["strength=0.25"] if method.leaves_strength_open else []
    config = own.with_settings([*ratio, *strength_setting], ignore, method=method)
    penalty = config.make_penalty(7)
    strength = penalty.strength if penalty is not None and method.leaves_strength_open else None
    expected = method.arguments(strength=strength, steps_per_epoch=7, total_steps=900)
    parts = {
        "penalty": penalty,
        "score": config.make_score(),
        "allocation": config.make_allocation(),
        "growth": config.make_growth(900),
    }
    score = expected["score"]
    if isinstance(score, FisherScore):
        expected["score"] = replace(score, examples=config.examples_per_step)
    assert parts == expected
    assert config.method_name == name
    open_ones = ("strength_schedule",) if method.leaves_strength_open else ()
    if method.growth is None:
        open_ones = ("schedule", "ratio", *open_ones)
    else:
        assert isinstance(config.make_schedule(kept=5, prunable=9, steps=90), method.schedule)
    for setting in ("fraction", "max_grad_norm", *open_ones):
        assert getattr(config, setting) == getattr(own, setting)


def test_settings_of_the_paper_are_written_out() -> None:
    assert method_settings(methods["paper"]) == {
        "penalty": "relevance",
        "apply": "gradient",
        "alpha": 1.0,
        "relative": False,
        "smoothing": 0.0,
        "strength_schedule": "linear",
        "strength": 1e-5,
        "score": "magnitude",
        "allocation": "global",
        "growth": "none",
    }
    assert method_settings(methods["random"]) == {
        "penalty": "none",
        "score": "random",
        "allocation": "global",
        "growth": "none",
    }
    assert method_settings(methods["rigl"]) == {
        "penalty": "none",
        "score": "magnitude",
        "allocation": "global",
        "growth": "gradient",
        "schedule": "oneshot",
    }


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        ("wmt14-translation", [], "paper"),
        ("taskmaster1-dialogue", [], "paper"),
        ("wmt14-translation", ["alpha=0.5"], None),
        ("shakespeare-lm", [], "prunus"),
        ("digits", [], "prunus"),
        ("shakespeare-lm", ["penalty=none"], None),
        ("shakespeare-lm", ["penalty=none", "score=magnitude"], "magnitude"),
        ("shakespeare-lm", ["penalty=l2", "score=magnitude", "strength=9"], "l2"),
        ("shakespeare-lm", ["penalty=l2", "score=magnitude", "apply=gradient", "strength=9"], None),
        ("shakespeare-lm", ["penalty=none", "score=magnitude", "growth=gradient"], "rigl"),
        ("wmt14-translation", ["allocation=erk"], None),
    ],
)
def test_settings_that_equal_those_of_a_method_have_its_name(
    recipe: str, changes: list[str], name: str | None
) -> None:
    assert find_recipe(recipe).config.with_settings(changes).method_name == name


def test_settings_win_over_the_method_with_a_message() -> None:
    messages: list[str] = []
    config = find_recipe("digits").config.with_settings(
        ["alpha=0.5", "score=taylor"], messages.append, method=methods["paper"]
    )
    assert (config.alpha, config.score, config.apply) == (0.5, "taylor", "gradient")
    assert messages == [
        "these settings are not those of the method paper: alpha=0.5 instead of 1.0, score=taylor "
        "instead of magnitude"
    ]


def test_another_schedule_that_accepts_growth_leaves_the_method_its_name() -> None:
    messages: list[str] = []
    config = find_recipe("digits").config.with_settings(
        ["schedule=gradual"], messages.append, method=methods["rigl"]
    )
    assert (config.schedule, config.method_name, messages) == ("gradual", "rigl", [])


def test_strength_that_a_method_leaves_open_is_reported_unless_it_is_set() -> None:
    own, messages = find_recipe("digits").config.with_settings(["strength=0.01"]), list[str]()
    assert own.with_settings([], messages.append, method=methods["l2"]).strength == 0.01
    assert messages == [
        "the method l2 leaves the strength open: 0.01 is the recipe's for penalty=relevance; set "
        "another one by --set strength=..."
    ]
    messages.clear()
    changed = own.with_settings(["strength=0.5"], messages.append, method=methods["l2"])
    assert (changed.strength, messages) == (0.5, [])
    own.with_settings(["penalty=l2"]).with_settings([], messages.append, method=methods["l2"])
    assert messages == []


def test_method_that_leaves_its_strength_open_needs_one_where_the_recipe_has_none() -> None:
    assert message_of(
        lambda: find_recipe("digits").config.with_settings([], method=methods["l2"])
    ) == (
        "strength=auto needs apply=decoupled and penalty=relevance, penalty=lobster or penalty=l1, "
        "but is used with apply=decoupled and penalty=l2: set strength to a number"
    )


def test_l1_finds_its_strength_where_the_recipe_has_none() -> None:
    messages: list[str] = []
    config = find_recipe("digits").config.with_settings([], messages.append, method=methods["l1"])
    assert (config.penalty, config.strength, messages) == ("l1", "auto", [])


@pytest.mark.slow
@pytest.mark.parametrize("name", methods)
def test_run_with_any_method_reaches_its_ratio_and_names_it(tmp_path: Path, name: str) -> None:
    strength = {"strength": 1e-3} if methods[name].leaves_strength_open else {}
    chosen = settings(**GRADUAL, **strength)
    outcome = prunus("run", "digits", "--method", name, *chosen, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    held = summary(tmp_path / "run")
    assert held["sparsity"] == pytest.approx(0.8, abs=1e-12)
    assert held["method_name"] == name
    assert f"digits, seed 0, method {name} " in outcome.out


def test_resumed_run_keeps_its_method_and_rejects_another(tmp_path: Path) -> None:
    chosen, out = settings(**GRADUAL), tmp_path / "run"
    assert prunus("run", "digits", "--method", "random", *chosen, "--out", out).code == 0
    again = prunus("run", "digits", "--out", out, "--resume")
    assert (again.code, "seed 0, method random " in again.out) == (0, True), again
    again = prunus("run", "digits", "--method", "random", "--out", out, "--resume")
    assert again.code == 0, again
    other = prunus("run", "digits", "--method", "taylor", "--out", out, "--resume")
    other.refused("holds another run: score was 'random' and is 'taylor'")


def test_unnamed_combination_has_no_method_in_the_summary(tmp_path: Path) -> None:
    chosen = settings(**GRADUAL, penalty="none", score="fisher")
    outcome = prunus("run", "digits", *chosen, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert summary(tmp_path / "run")["method_name"] is None
    assert "digits, seed 0" in outcome.out
    assert "method" not in outcome.out
