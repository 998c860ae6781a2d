"""Plans: the runs that a request asks for, and what is rejected before any of them starts."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from prunus.errors import PrunusError
from prunus.methods import methods
from prunus.recipes.registry import find_recipe
from prunus.studies import Cell
from prunus.studies.plan import plan_study, run_arguments
from studies.stubs import request, summary


def test_cells_are_ordered_by_seed_ratio_and_method() -> None:
    study = plan_study(request(methods=["prunus", "magnitude"], ratios=[25, 60], seeds=[1, 0]))
    assert [str(cell) for cell in study.cells] == [
        f"{method}, ratio {ratio}, seed {seed}"
        for seed in (1, 0)
        for ratio in (25, 60)
        for method in ("prunus", "magnitude")
    ]


def test_defaults_are_two_methods_the_ratio_of_the_recipe_and_three_seeds() -> None:
    study = plan_study(request())
    assert list(study.methods) == ["prunus", "magnitude"]
    assert (study.ratios, study.seeds, study.threads) == ([25.0], [0, 1, 2], 1)
    assert study.data == "embedded"
    assert study.environment["threads"] == 1


def test_method_has_the_settings_that_differ_from_the_study() -> None:
    study = plan_study(
        request(methods=["prunus", "weak = prunus,strength=0.001", "l2 , strength=0.5"])
    )
    assert list(study.methods) == ["prunus", "weak", "l2,strength=0.5"]
    assert study.methods["prunus"].settings == {}
    assert study.methods["weak"].settings == {"strength": 0.001}
    assert study.settings_of("l2,strength=0.5") == {
        **study.settings,
        "penalty": "l2",
        "strength": 0.5,
        "score": "magnitude",
    }


def test_strength_that_a_method_leaves_open_is_that_of_the_recipe() -> None:
    recipe = find_recipe("digits")
    for name in ("l2", "l1"):
        assert recipe.method(name).strength is not None
        study = plan_study(request(methods=[name]))
        assert study.methods[name].settings["strength"] == recipe.strengths[name]
    assert recipe.method("prunus") is methods["prunus"]
    with pytest.raises(PrunusError, match=r'set strength to a number, such as --method "l2,stren'):
        plan_study(request(recipe="mnist-lenet5", methods=["l2"]))


def test_run_arguments_are_those_of_a_run_on_its_own() -> None:
    study = plan_study(
        request(methods=["weak = prunus,strength=0.001"], changes=["epochs=3"], ratios=[25])
    )
    assert run_arguments(study, Cell("weak", 25.0, 2), "folder") == [
        *("digits", "--seed", "2", "--method", "prunus"),
        *("--set", "epochs=3", "--set", "strength=0.001", "--set", "ratio=25"),
        *("--data", "folder"),
    ]
    assert study.runs[2].command.startswith("prunus run digits --seed 2 --method prunus --set ")
    assert "--data" not in study.runs[2].command


def test_command_plans_the_same_study() -> None:
    texts = ["prunus", "weak = prunus,strength=0.001", "magnitude"]
    study = plan_study(request(methods=texts, changes=["epochs=3"], threads=2))
    (command,) = study.commands
    assert shlex.split(command) == [
        *("prunus", "compare", "digits", "--methods", "prunus"),
        *("--method", "weak = prunus,strength=0.001", "--method", "magnitude"),
        *("--ratios", "25", "--seeds", "0,1,2", "--set", "epochs=3", "--threads", "2"),
    ]


def test_study_is_continued_with_its_own_settings_where_none_are_passed() -> None:
    study = plan_study(request(methods=["weak = prunus,strength=1"], changes=["epochs=3"]))
    assert plan_study(request(), study) is study
    assert plan_study(request(methods=["weak = prunus,strength=1.0"]), study) is study


def test_seeds_ratios_and_methods_are_added() -> None:
    study = plan_study(request(methods=["prunus"], seeds=[0], ratios=[25]))
    study = study.with_summary(study.cells[0], summary(0, 0.9, 25.0), "2026-01-01")
    more = plan_study(request(seeds=[0, 1]), study)
    assert [cell.seed for cell in more.cells] == [0, 1]
    assert more.finished == study.finished
    more = plan_study(request(methods=["magnitude"], ratios=[60], seeds=[0]), more)
    assert [tuple(cell) for cell in more.cells] == [
        ("prunus", 25.0, 0),
        ("magnitude", 60.0, 0),
        ("prunus", 25.0, 1),
    ]
    assert len(more.commands) == 3
    assert more.commands[2].endswith("--methods magnitude --ratios 60 --seeds 0")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"changes": ["epochs=4"]},
            "study has other settings: epochs was 3 and is 4; continue",
        ),
        ({"threads": 2}, "threads was 1 and is 2"),
        ({"recipe": "shakespeare-lm"}, "recipe was 'digits' and is 'shakespeare-lm'"),
        (
            {"methods": ["weak = prunus,strength=2"]},
            "other settings: strength of weak was 1.0 and is 2.0; continue",
        ),
        (
            {"methods": ["weak = magnitude"]},
            "method weak was 'prunus' and is 'magnitude', ",
        ),
    ],
)
def test_study_with_other_settings_is_not_continued(values: dict[str, Any], message: str) -> None:
    study = plan_study(request(methods=["weak = prunus,strength=1"], changes=["epochs=3"]))
    values = {"changes": ["epochs=3"], **values}
    with pytest.raises(PrunusError, match=re.escape(message)):
        plan_study(request(**values), study)


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({"methods": ["lobstr"]}, ["there is no method 'lobstr'. Did you mean lobster?"]),
        (
            {"methods": ["lobstr", "l2,strengt=1", "prunus,alpha=-1"]},
            [
                "no method 'lobstr'",
                "l2,strengt=1: there is no setting 'strengt'; did you mean strength",
                "prunus,alpha=-1: alpha must be above 0, but is -1.0",
            ],
        ),
        ({"methods": ["l2", "l2"]}, ["the methods has l2 more than once"]),
        ({"methods": ["a b = l2", "a-b = l1"]}, ["the labels 'a b' and 'a-b' are too similar"]),
        ({"methods": ["= prunus"]}, ["'= prunus' is not of the form NAME,KEY=VALUE"]),
        (
            {"methods": ["l2 = prunus"]},
            ["the label 'l2' is the name of another method than prunus"],
        ),
        (
            {"methods": ["long = prunus,epochs=500,batch_size=8,strength=1"]},
            ["long changes what all methods of a study share: epochs=500, batch_size=8; "],
        ),
        (
            {"ratios": [1.0, 25, 25], "seeds": [0, -1, 0], "threads": 0},
            [
                "a ratio must be above 1, but is 1.0",
                "a seed must be from 0",
                "--ratios has 25 more than once",
                "--seeds has 0 more than once",
                "threads must be at least 1, but is 0",
            ],
        ),
        ({"changes": ["ratio=3"]}, ["the ratios of a study are --ratios"]),
        (
            {"methods": ["prunus", "l2"], "changes": ["strength=0.1"]},
            [
                "--set strength=0.1 would replace what the methods prunus, l2 set: pass it with a "
                'method, such as --method "prunus,strength=0.1"'
            ],
        ),
        (
            {"data": "elsewhere"},
            ["the recipe digits has embedded data: leave out --data elsewhere"],
        ),
        ({"recipe": "taskmaster-dialogue"}, ["has no data of its own: pass --data FOLDER"]),
        (
            {"recipe": "wmt14-translation"},
            ["wmt14-translation has no ratio to reach: pass --ratios"],
        ),
        ({"changes": ["epoch=3"]}, ["there is no setting 'epoch'; did you mean epochs"]),
        (
            {"changes": ["epoch=3"], "ratios": [0.5], "methods": ["lobstr", "l2,alph=1"]},
            [
                "no setting 'epoch'",
                "a ratio must be above 1, but is 0.5",
                "no method 'lobstr'",
                "l2,alph=1: there is no setting 'alph'",
            ],
        ),
    ],
)
def test_bad_request_is_one_error(values: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(PrunusError) as raised:
        plan_study(request(**values))
    for message in messages:
        assert str(raised.value).count(message) == 1, str(raised.value)


def test_schedule_for_all_methods_replaces_that_of_growth() -> None:
    study = plan_study(request(methods=["prunus", "rigl"], changes=["schedule=gradual"]))
    assert study.settings_of("rigl")["schedule"] == "gradual"
    assert plan_study(request(methods=["rigl"])).settings_of("rigl")["schedule"] == "oneshot"


def test_settings_without_effect_are_reported_once() -> None:
    messages: list[str] = []
    chosen = request(changes=["schedule_end=0.5"], methods=["prunus", "l1,alpha=0.3"])
    plan_study(chosen, None, messages.append)
    assert messages == [
        "schedule_end has no effect with schedule=iterative: set schedule=gradual, or leave it out",
        "l1,alpha=0.3: alpha has no effect with penalty=l1: set penalty=relevance or lobster, or "
        "leave it out",
    ]


def test_every_named_method_can_be_compared_on_digits() -> None:
    study = plan_study(request(methods=list(methods)))
    assert list(study.methods) == list(methods)


def test_record_names_no_path(tmp_path: Any) -> None:
    folder = tmp_path / "shakespeare"
    folder.mkdir()
    study = plan_study(request(recipe="shakespeare-lm", data=str(folder)))
    assert study.data == "shakespeare"
    assert str(tmp_path) not in study.commands[0] + study.runs[0].command
    assert "--data shakespeare" in study.runs[0].command
