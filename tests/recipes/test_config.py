"""Settings: parsing, bounds, conflicts, and errors that list all of them."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.errors import message_of
from prunus.allocation import ErdosRenyiAllocation, GlobalAllocation, UniformAllocation
from prunus.constraint import Constraint
from prunus.errors import ArgumentError, PrunusError
from prunus.growth import AlternatingGrowth, GradientGrowth, RandomGrowth, SoftGrowth
from prunus.patterns import NM, Block, Channels, Columns, Rows
from prunus.penalties.coefficients import ConstantRelevance, ExponentialRelevance, LinearRelevance
from prunus.penalties.strengths import (
    AutomaticStrength,
    ConstantStrength,
    LearningRateStrength,
    LinearDecayStrength,
    UpdateStrength,
)
from prunus.recipes.registry import RECIPES
from prunus.recipes.setting_marks import Affects
from prunus.recipes.tasks.classification import ImageConfig
from prunus.schedules import GradualPruning, IterativePruning, OneShot
from prunus.scores import (
    FisherScore,
    MagnitudeScore,
    MovementScore,
    RandomScore,
    SensitivityScore,
    TaylorScore,
)

BASE = ImageConfig(
    dense_epochs=1,
    epochs=10,
    batch_size=8,
    dense_lr=0.1,
    lr=0.1,
    strength=0.01,
    ratio=9,
    score="magnitude",  # goes with every way to apply the penalty
)

WHOLE, NUMBER = "a whole number", "a number"
FLOOR = 'floor must be a number, or "dense-0.005", "dense-0.5%", "dense+2%" or "dense*0.99", but'

# Setting: a text, its value, and texts that are rejected, each with the reason.
SETTINGS: dict[str, tuple[str, Any, dict[str, str]]] = {
    "dense_epochs": ("7", 7, {"x": WHOLE, "1.5": WHOLE, "": WHOLE, "0": "at least 1"}),
    "epochs": ("7", 7, {"none": WHOLE, "1e3": WHOLE, "0": "at least 1", "-3": "at least 1"}),
    "batch_size": ("64", 64, {"all": WHOLE, "0": "at least 1"}),
    "dense_lr": ("1e-3", 1e-3, {"x": NUMBER, "0": "above 0", "-1": "above 0", "nan": "above 0"}),
    "lr": ("0.5", 0.5, {"0,5": NUMBER, "0": "above 0", "nan": "above 0", "inf": "a finite number"}),
    "strength": (
        "0",
        0.0,
        {"x": NUMBER, "-1": "at least 0", "inf": "a finite number of at least 0"},
    ),
    "ratio": ("40", 40.0, {"x": NUMBER, "1": "above 1", "0": "above 1", "nan": "above 1"}),
    "warmup": ("0.5", 0.5, {"x": NUMBER, "1": "from 0 to below 1", "nan": "from 0 to below 1"}),
    "max_grad_norm": (
        "1",
        1.0,
        {"x": NUMBER, "-1": "at least 0", "inf": "a finite number of at least 0"},
    ),
    "autocast": ("true", True, {"bf16": "true or false", "1": "true or false"}),
    "distillation": ("0.5", 0.5, {"x": NUMBER, "1.1": "from 0 to 1", "-0.1": "from 0 to 1"}),
    "initial_weights": ("random", "random", {"fresh": "dense or random"}),
    "penalty": ("l1", "l1", {"L1": "relevance, lobster, l2, l1 or none", "": "relevance"}),
    "strength_schedule": ("linear", "linear", {"cosine": "constant, lr or linear"}),
    "alpha": ("2", 2.0, {"x": NUMBER, "0": "above 0", "inf": "a finite number above 0"}),
    "relative": ("FALSE", False, {"no": "true or false", "1": "true or false"}),
    "smoothing": ("0.9", 0.9, {"x": NUMBER, "1": "from 0 to below 1", "nan": "from 0 to below 1"}),
    "apply": ("loss", "loss", {"hook": "gradient, loss or decoupled"}),
    "schedule": ("oneshot", "oneshot", {"cubic": "iterative, gradual or oneshot"}),
    "schedule_begin": (
        "0.1",
        0.1,
        {"x": NUMBER, "-0.1": "from 0 to below 1", "0.6": "must be below schedule_end=0.6"},
    ),
    "schedule_end": (
        "1",
        1.0,
        {"x": NUMBER, "0": "above 0 and at most 1", "1.1": "above 0 and at most 1"},
    ),
    "fraction": ("0.3", 0.3, {"x": NUMBER, "-1": "from 0 to below 1", "1": "from 0 to below 1"}),
    "patience": ("3", 3, {"x": WHOLE, "-1": "at least 0"}),
    "floor": ("dense-0.01", "dense-0.01", {"nonsense": FLOOR, "nan": FLOOR, "dense/2": FLOOR}),
    "score": (
        "taylor",
        "taylor",
        {"size": "magnitude, fisher, sensitivity, taylor, movement or random"},
    ),
    "allocation": ("erk", "erk", {"local": "global, uniform or erk", "": "global"}),
    "growth": ("soft", "soft", {"rigl": "none, soft, random, gradient or alternating"}),
    "pattern": (
        "2:4",
        "2:4",
        {"4:2": "n must be below m=2", "0x4": "rows must be at least 1", "cols": "columns or"},
    ),
    "biases": ("true", True, {"yes": "true or false", "": "true or false"}),
    "norms": ("true", True, {"yes": "true or false", "": "true or false"}),
    "min_density": ("0.01", 0.01, {"x": NUMBER, "1": "from 0 to below 1", "-1": "from 0 to"}),
    "validation": (
        "0.25",
        0.25,
        {"x": NUMBER, "0": "above 0 and below 1", "1": "above 0 and below 1", "nan": "above 0"},
    ),
    "shift": ("2", 2, {"x": WHOLE, "-1": "at least 0"}),
    "flip": ("true", True, {"half": "true or false", "1": "true or false"}),
    "channels_last": ("true", True, {"nhwc": "true or false", "1": "true or false"}),
    "momentum": ("0", 0.0, {"x": NUMBER, "1": "from 0 to below 1", "-0.1": "from 0 to below 1"}),
    "weight_decay": (
        "5e-4",
        5e-4,
        {"x": NUMBER, "-1": "at least 0", "inf": "a finite number of at least 0"},
    ),
}


def ignore(_: str) -> None:
    """Accept a message that a setting has no effect."""


def test_table_covers_every_setting() -> None:
    assert list(SETTINGS) == [field.name for field in dataclasses.fields(ImageConfig)]


@pytest.mark.parametrize("key", SETTINGS)
def test_setting_is_parsed(key: str) -> None:
    text, value, _ = SETTINGS[key]
    changed = BASE.with_settings([f"{key}={text}"], ignore)
    assert getattr(changed, key) == value
    assert type(getattr(changed, key)) is type(value)
    assert changed.as_dict() == {**BASE.as_dict(), key: value}


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [(key, text, why) for key, (_, _, bad) in SETTINGS.items() for text, why in bad.items()],
)
def test_wrong_value_is_rejected_with_name_and_reason(key: str, text: str, reason: str) -> None:
    with pytest.raises(PrunusError, match=re.escape(reason)) as caught:
        BASE.with_settings([f"{key}={text}"])
    assert key in str(caught.value)
    shown = {text, repr(text)} | ({repr(float(text))} if _is_number(text) else set())
    assert any(form in str(caught.value) for form in shown), "the message shows the value"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", None),
        ("None", None),
        ("0.98", 0.98),
        ("-1", -1.0),
        ("dense", "dense"),
        ("dense-0.01", "dense-0.01"),
        ("dense*0.99", "dense*0.99"),
        ("dense - 0.1", "dense - 0.1"),
    ],
)
def test_floor_accepts_numbers_and_relative_bounds(text: str, value: float | str | None) -> None:
    floor = BASE.with_settings([f"floor={text}"]).floor
    assert floor == value
    assert type(floor) is type(value)


@pytest.mark.parametrize("text", ["nonsense", "", "inf", "nan", "dense-", "dense-x", "0.9-dense"])
def test_other_floors_are_rejected(text: str) -> None:
    with pytest.raises(PrunusError, match=re.escape(FLOOR)):
        BASE.with_settings([f"floor={text}"])


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("epoch", "epochs"),
        ("dense_learning_rate", "dense_lr"),
        ("batchsize", "batch_size"),
        ("Floor", "floor"),
    ],
)
def test_unknown_key_suggests_the_nearest(slip: str, meant: str) -> None:
    with pytest.raises(PrunusError, match=rf"no setting '{slip}'; did you mean .*\b{meant}\b"):
        BASE.with_settings([f"{slip}=1"])


def test_an_option_that_is_taken_for_a_setting_is_named() -> None:
    with pytest.raises(PrunusError, match="no setting 'method'; pass the option --method of"):
        BASE.with_settings(["method=paper"])


def test_unknown_key_without_near_match_lists_all() -> None:
    with pytest.raises(PrunusError, match="no setting 'zzzzz'; known: " + ", ".join(SETTINGS)):
        BASE.with_settings(["zzzzz=1"])


def test_setting_without_equals_sign_is_rejected() -> None:
    with pytest.raises(PrunusError, match="'epochs' is not of the form key=value"):
        BASE.with_settings(["epochs"])


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        (
            ["patience=5", "fraction=0.2"],
            [
                f"{name} has no effect with schedule=gradual: set schedule=iterative, or leave it "
                "out"
                for name in ("patience", "fraction")
            ],
        ),
        (
            ["schedule=iterative", "schedule_begin=0.1"],
            [
                "schedule_begin has no effect with schedule=iterative: set schedule=gradual or "
                "oneshot, or leave it out"
            ],
        ),
        (
            ["schedule=oneshot", "schedule_end=0.1", "schedule_begin=0.7"],
            [
                "schedule_end has no effect with schedule=oneshot: set schedule=gradual, or leave "
                "it out"
            ],
        ),
        (
            ["alpha=1", "relative=false", "smoothing=0.5", "penalty=l2", "alpha=2"],
            [
                f"{name} has no effect with penalty=l2: set penalty=relevance or lobster, or leave "
                "it out"
                for name in ("alpha", "relative", "smoothing")
            ],
        ),
        (
            ["penalty=none", "strength=1", "apply=loss"],
            [
                f"{name} has no effect with penalty=none: set penalty=relevance, lobster, l2 or "
                "l1, or leave it out"
                for name in ("strength", "apply")
            ],
        ),
        (["schedule=iterative", "patience=5", "fraction=0.2", "penalty=lobster", "alpha=1"], []),
        (
            ["strength=auto", "strength_schedule=linear"],
            [
                "strength_schedule has no effect with strength=auto: set another strength, or "
                "leave it out"
            ],
        ),
        (["penalty=none", "schedule=oneshot"], []),  # defaults are not reported
    ],
)
def test_setting_without_effect_is_reported_once(settings: list[str], messages: list[str]) -> None:
    heard: list[str] = []
    reported = BASE.with_settings(settings, heard.append)
    assert heard == messages
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert BASE.with_settings(settings) == reported
    assert [str(warning.message) for warning in caught] == messages
    assert all(warning.filename == __file__ for warning in caught), "the caller is shown"


# The settings of each kind of recipe that change its dense network or its teacher outputs.
DENSE = {"dense_epochs", "batch_size", "dense_lr", "warmup", "max_grad_norm", "autocast"}
IMAGES = {"validation", "shift", "flip", "channels_last", "momentum", "weight_decay"}
LANGUAGE = {
    *("vocabulary", "length", "width", "layers", "heads", "feed_forward", "dropout"),
    *("label_smoothing", "accumulation", "beta1", "beta2"),
}


@pytest.mark.parametrize(
    ("name", "dense", "teacher"),
    [
        ("digits", IMAGES, set()),
        ("shakespeare-lm", LANGUAGE, set()),
        (
            "multi30k-translation",
            LANGUAGE,
            {"sequence_distillation", "beams", "length_penalty"},
        ),
    ],
)
def test_settings_that_affect_dense_network_and_teacher_outputs(
    name: str, dense: set[str], teacher: set[str]
) -> None:
    config = RECIPES[name].config
    for result, expected in (
        (Affects.DENSE_NETWORK, DENSE | dense),
        (Affects.TEACHER_OUTPUTS, teacher),
    ):
        found = config.settings_affecting(result)
        assert found.keys() == expected
        assert found == {key: getattr(config, key) for key in found}


@pytest.mark.parametrize(
    ("settings", "in_loss"),
    [
        (["apply=loss"], True),
        (["apply=gradient"], False),
        (["apply=decoupled"], False),
        (["apply=loss", "penalty=l1"], True),
        (["apply=loss", "penalty=none"], False),
    ],
)
def test_penalty_in_loss_follows_penalty_and_apply(settings: list[str], in_loss: bool) -> None:
    assert BASE.with_settings(settings, ignore).penalty_in_loss is in_loss


def test_last_of_two_values_applies() -> None:
    assert BASE.with_settings(["epochs=3", "epochs=5"]).epochs == 5


def test_all_parse_errors_are_listed_in_one_message() -> None:
    with pytest.raises(PrunusError) as caught:
        BASE.with_settings(["epoch=3", "lr=fast", "score=size", "biases", "relative=2"])
    assert re.sub(r"(?<=did you mean )[^?]*\bepochs\b[^?]*", "epochs", str(caught.value)).split(
        "; "
    ) == [
        "there is no setting 'epoch'",
        "did you mean epochs?",
        "lr must be a number, but is 'fast'",
        "score must be magnitude, fisher, sensitivity, taylor, movement or random, but is 'size'",
        "'biases' is not of the form key=value",
        "relative must be true or false, but is '2'",
    ]


def test_error_is_listed_once() -> None:
    with pytest.raises(PrunusError) as caught:
        BASE.with_settings(["schedule=iterative", "patience=-1"])
    assert str(caught.value) == "patience must be at least 0, but is -1"


def test_all_values_out_of_bounds_are_listed_in_one_message() -> None:
    with pytest.raises(PrunusError) as caught:
        BASE.with_settings(
            ["epochs=0", "lr=-1", "momentum=1", "validation=1", "schedule_end=2", "ratio=0.5"]
        )
    assert str(caught.value) == (
        "epochs must be at least 1, but is 0; lr must be above 0, but is -1.0; ratio must be above "
        "1 (or 0 for no target, with schedule=iterative alone), but is 0.5; schedule_end must be "
        "above 0 and at most 1, but is 2.0; validation must be above 0 and below 1, but is 1.0; "
        "momentum must be from 0 to below 1, but is 1.0"
    )


def test_errors_of_shared_settings_penalty_and_floor_are_all_listed() -> None:
    with pytest.raises(PrunusError) as caught:
        BASE.with_settings(["epochs=0", "strength=-1", "alpha=0", "floor=nonsense"])
    missing = [
        part
        for part in ("epochs must be", "strength must be", "alpha must be", "floor must be")
        if part not in str(caught.value)
    ]
    assert missing == []


def test_parse_error_and_value_out_of_bounds_are_both_listed() -> None:
    with pytest.raises(PrunusError, match=r"(?s)(?=.*lr must be a number)(?=.*epochs must be at)"):
        BASE.with_settings(["lr=fast", "epochs=0"])


@pytest.mark.parametrize("text", ["1.5", "1", "-0.5", "nan"])
@pytest.mark.parametrize("schedule", ["iterative", "gradual"])
def test_fraction_is_checked_with_every_schedule(schedule: str, text: str) -> None:
    with pytest.raises(PrunusError, match="fraction must be .*from 0 to below 1, but is"):
        BASE.with_settings([f"schedule={schedule}", f"fraction={text}"])


def test_only_the_iterative_schedule_accepts_no_target() -> None:
    assert BASE.with_settings(["schedule=iterative", "ratio=0"]).ratio == 0
    for schedule in ("gradual", "oneshot"):
        with pytest.raises(PrunusError, match="ratio must be above 1 .* but is 0.0"):
            BASE.with_settings([f"schedule={schedule}", "ratio=0"])


def test_schedule_must_begin_before_it_ends() -> None:
    message = "schedule_begin must be below schedule_end=0.6, but is 0.7"
    with pytest.raises(PrunusError, match=message):
        BASE.with_settings(["schedule_begin=0.7"])
    changed = BASE.with_settings(["schedule_begin=0.7", "schedule_end=0.8"])
    assert changed.schedule_begin == 0.7


@given(st.text(), st.text())
def test_any_text_is_a_setting_or_a_user_error(key: str, text: str) -> None:
    try:
        changed = BASE.with_settings([f"{key}={text}"], ignore)
    except PrunusError as error:
        assert str(error)  # noqa: PT017
    else:
        assert key in SETTINGS
        assert changed.as_dict().keys() == SETTINGS.keys()


@given(st.sampled_from(sorted(SETTINGS)), st.text(alphabet="0123456789.-+einfasdu_ ") | st.text())
@example("schedule_begin", "nan")
@example("schedule_end", "inf")
def test_any_value_is_accepted_or_a_user_error(key: str, text: str) -> None:
    try:
        changed = BASE.with_settings([f"{key}={text}"], ignore)
    except PrunusError as error:
        assert key in str(error) or "floor" in key  # noqa: PT017
    else:
        rest = {name: value for name, value in changed.as_dict().items() if name != key}
        assert rest == {name: value for name, value in BASE.as_dict().items() if name != key}


def test_every_value_of_a_recipe_is_parsed_from_its_text() -> None:
    for recipe in RECIPES.values():
        again = recipe.config.with_settings(
            [f"{k}={v}" for k, v in recipe.config.as_dict().items()], ignore
        )
        assert again == recipe.config


@pytest.mark.parametrize(
    ("penalty", "coefficient", "power", "smoothing"),
    [
        ("relevance", ExponentialRelevance(0.2, True), 2, 0.7),
        ("lobster", LinearRelevance(0.2, True), 2, 0.7),
        ("l2", ConstantRelevance(), 2, 0.0),
        ("l1", ConstantRelevance(), 1, 0.0),
    ],
)
def test_penalty_follows_its_setting(
    penalty: str, coefficient: object, power: int, smoothing: float
) -> None:
    built = BASE.with_settings(
        [f"penalty={penalty}", "apply=gradient", "smoothing=0.7"], ignore
    ).make_penalty(5)
    assert built is not None
    assert (built.coefficient, built.power, built.apply) == (coefficient, power, "gradient")
    assert built.smoothing == smoothing


def test_smoothing_is_rejected_with_the_penalty_in_the_loss() -> None:
    with pytest.raises(PrunusError, match="smoothing needs apply=gradient or apply=decoupled"):
        BASE.with_settings(["apply=loss", "smoothing=0.7"])


def test_penalty_none_builds_no_penalty() -> None:
    assert BASE.with_settings(["penalty=none"]).make_penalty(5) is None


@pytest.mark.parametrize(
    ("follows", "strength"),
    [
        ("constant", ConstantStrength(0.01)),
        ("lr", LearningRateStrength(0.01)),
        ("linear", LinearDecayStrength(0.01, 5)),
    ],
)
def test_strength_follows_its_setting(follows: str, strength: object) -> None:
    built = BASE.with_settings([f"strength_schedule={follows}"]).make_penalty(5)
    assert built is not None
    assert built.strength == strength


def test_automatic_strength_follows_its_setting() -> None:
    for penalty, expected in (("relevance", AutomaticStrength()), ("l1", UpdateStrength())):
        built = BASE.with_settings(["strength=auto", f"penalty={penalty}"]).make_penalty(5)
        assert built is not None
        assert built.strength == expected


@pytest.mark.parametrize("setting", ["apply=gradient", "penalty=l2"])
def test_automatic_strength_needs_a_penalty_of_relevance_or_l1_after_the_step(setting: str) -> None:
    with pytest.raises(PrunusError, match="strength=auto needs apply=decoupled and penalty=rel"):
        BASE.with_settings(["strength=auto", setting])


def test_schedule_follows_its_setting() -> None:
    def build(*settings: str) -> object:
        config = BASE.with_settings(settings)
        return config.make_schedule(kept=25, prunable=100, steps=1000)

    constraint = BASE.with_settings(["floor=dense-0.1"]).make_constraint(0.75)
    assert constraint == Constraint("dense-0.1", "max", 0.75)
    assert build("schedule=iterative", "fraction=0.5") == IterativePruning(
        fraction=0.5, target=0.75, patience=None
    )
    assert build("schedule=iterative", "ratio=0", "patience=4") == IterativePruning(
        fraction=0.1, target=None, patience=4
    )
    assert build("schedule=iterative", "fraction=0") == IterativePruning(target=0.75)
    # From step 100 to 600, in a hundred removals.
    assert build("schedule=gradual", "schedule_begin=0.1") == GradualPruning(
        kept=25, begin=100, end=600, every=5
    )
    assert build("schedule=oneshot", "schedule_begin=0.5") == OneShot(sparsity=0.75, at=500)
    assert build("schedule=oneshot") == OneShot(sparsity=0.75, at=1)


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_gradual_schedule_fits_the_shortest_run(steps: int) -> None:
    config = BASE.with_settings(["schedule_begin=0.98", "schedule_end=1"])
    schedule = config.make_schedule(kept=1, prunable=2, steps=steps)
    assert isinstance(schedule, GradualPruning)
    assert schedule.end is not None
    assert 0 <= schedule.begin < schedule.end <= steps


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("magnitude", MagnitudeScore()),
        ("fisher", FisherScore(examples=8)),  # the batch size
        ("sensitivity", SensitivityScore()),
        ("taylor", TaylorScore()),
        ("movement", MovementScore()),
        ("random", RandomScore()),
    ],
)
def test_score_follows_its_setting(name: str, score: object) -> None:
    assert BASE.with_settings([f"score={name}"]).make_score() == score


@pytest.mark.parametrize(
    ("name", "allocation"),
    [
        ("global", GlobalAllocation()),
        ("uniform", UniformAllocation()),
        ("erk", ErdosRenyiAllocation(kernel=True)),
    ],
)
def test_allocation_follows_its_setting(name: str, allocation: object) -> None:
    assert BASE.with_settings([f"allocation={name}"]).make_allocation() == allocation


@pytest.mark.parametrize(
    ("name", "growth"),
    [
        ("none", None),
        ("soft", SoftGrowth(until=300, every=4)),
        ("random", RandomGrowth(every=4, until=400)),
        ("gradient", GradientGrowth(every=4, until=300)),
        ("alternating", AlternatingGrowth(sparse=20, dense=20, until=340)),
    ],
)
def test_growth_follows_its_setting_and_the_length_of_the_run(name: str, growth: object) -> None:
    assert BASE.with_settings([f"growth={name}"]).make_growth(400) == growth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["growth=soft", "schedule=iterative"],
            "growth=soft needs schedule=gradual or schedule=oneshot, but has schedule=iterative, "
            "which relies on removed weights staying removed",
        ),
        (
            ["growth=soft", "apply=loss"],
            "growth=soft trains removed weights, which apply=loss does not shrink: choose another "
            "apply or growth",
        ),
    ],
)
def test_growth_that_conflicts_with_another_setting_is_rejected(
    settings: list[str], message: str
) -> None:
    assert message_of(lambda: BASE.with_settings(settings)) == message


@pytest.mark.parametrize(
    ("setting", "pattern"),
    [
        ("none", None),
        ("2:4", NM(2, 4)),
        ("16:32", NM(16, 32)),
        ("1x4", Block(1, 4)),
        ("rows", Rows()),
        ("columns", Columns()),
        ("channels", Channels()),
    ],
)
def test_pattern_follows_its_setting(setting: str, pattern: object) -> None:
    assert BASE.with_settings([f"pattern={setting}"]).make_pattern() == pattern


def test_growth_of_single_weights_with_a_pattern_is_rejected() -> None:
    for settings in (["growth=gradient", "pattern=2:4"], ["growth=soft", "pattern=rows"]):
        with pytest.raises(ArgumentError, match="or growth=alternating with pattern=n:m$"):
            BASE.with_settings(settings)
    BASE.with_settings(["growth=soft", "pattern=2:4"])


def test_growth_goes_with_a_loss_term_unless_it_trains_removed_weights() -> None:
    for settings in (["growth=gradient", "apply=loss"], ["growth=soft", "penalty=none"]):
        BASE.with_settings(settings)


def test_method_names_penalty_application_schedule_score_and_growth() -> None:
    assert BASE.method == "relevance (decoupled), gradual, magnitude"
    other = BASE.with_settings(["penalty=none", "schedule=oneshot", "score=random"])
    assert other.method == "none, oneshot, random"
    assert other.with_settings(["allocation=erk"]).method == "none, oneshot, random, erk"
    grown = BASE.with_settings(["penalty=none", "growth=gradient"])
    assert grown.method == "none, gradual, magnitude, gradient growth"
    blocks = BASE.with_settings(["penalty=none", "pattern=1x4"])
    assert blocks.method == "none, gradual, magnitude, 1x4"


def test_nan_is_rejected_for_every_number() -> None:
    for key, (_, value, _) in SETTINGS.items():
        if isinstance(value, float) or key == "floor":
            with pytest.raises(PrunusError, match="nan"):
                BASE.with_settings([f"{key}={math.nan}", "schedule=iterative"])


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("learning_rate", "lr"),
        ("sparsity", "ratio"),
        ("num-epochs", "epochs"),
        ("Gamma", "strength"),
    ],
)
def test_names_of_other_tools_lead_to_the_setting(name: str, setting: str) -> None:
    expected = f"there is no setting {name!r}; did you mean {setting}?"
    assert message_of(lambda: BASE.with_settings([f"{name}=1"])) == expected


def test_name_of_another_tool_whose_setting_the_recipe_lacks_is_searched_for() -> None:
    message = message_of(lambda: BASE.with_settings(["num_beams=3"]))
    assert "did you mean beams" not in message
