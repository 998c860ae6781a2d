"""The published comparisons: their commands, and the records among the result files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measuring import RESULTS, rounded
from benchmarks.studies.published import METHODS, RELEVANCE, STUDIES, arguments, result_file
from helpers.commands import prunus
from prunus.methods import methods
from prunus.recipes.registry import find_recipe
from prunus.studies import Study, load_study
from prunus.studies.plan import plan_study
from studies.stubs import request

FILES = sorted(RESULTS.glob("compare-*.json"))


def planned(name: str) -> Study:
    """Return the plan of a published study."""
    recipe, *options = arguments(name)
    pairs = list(zip(options[::2], options[1::2], strict=True))

    def values(flag: str) -> list[str]:
        return [value for found, value in pairs if found == flag]

    (ratios,), (seeds,) = values("--ratios"), values("--seeds")
    return plan_study(
        request(
            recipe=recipe,
            methods=values("--method"),
            changes=values("--set"),
            ratios=[float(ratio) for ratio in ratios.split(",")],
            seeds=[int(seed) for seed in seeds.split(",")],
            data=None if find_recipe(recipe).data else "FOLDER",
        )
    )


@pytest.mark.parametrize("name", STUDIES)
def test_command_is_accepted_and_uses_known_methods(name: str) -> None:
    assert set(planned(name).methods) <= {*METHODS, "prunus-l1", *methods}


def test_every_record_is_of_a_published_study() -> None:
    assert {result_file(name) for name in STUDIES} >= set(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_record_has_the_settings_of_its_command(file: Path) -> None:
    study, plan = load_study(file), planned(file.stem.removeprefix("compare-"))
    assert study.finished
    # Otherwise the study cannot be continued.
    assert rounded(study.settings, 6) == rounded(plan.settings, 6)
    assert study.methods == plan.methods
    assert (study.recipe, study.data, study.threads) == (plan.recipe, plan.data, plan.threads)
    assert set(study.cells) <= set(plan.cells)


def test_relevance_is_the_penalty_of_the_paper_and_removes_by_magnitude() -> None:
    for recipe, settings in RELEVANCE.items():
        data = None if find_recipe(recipe).data else "FOLDER"
        text = f"relevance = magnitude,penalty=relevance,{settings}"
        study = plan_study(request(recipe=recipe, methods=[text], data=data))
        found = study.settings_of("relevance")
        assert (found["penalty"], found["score"]) == ("relevance", "magnitude")
        assert found["strength"] > 0


def test_table_of_a_result_file_is_printed() -> None:
    outcome = prunus("compare", "--out", RESULTS / "compare-digits.json")
    assert outcome.code == 0
    assert "3 of 3 runs of digits are finished; nothing was trained" in outcome.out
