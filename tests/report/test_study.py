"""Pages about studies: their tables, their figure, and names from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from helpers.reports import read_page, sample_run, summary
from prunus import CheckpointError
from prunus.report import write_report
from prunus.report.figures.drawing import FULL, NARROW
from prunus.report.figures.study_curves import study_curves
from prunus.studies import Cell, Study, StudyMethod, StudyRun
from prunus.studies.record import STUDY_FILE, write_study

EVIL = "<script>alert('x')</script>&$\\alpha$"

VALUES = {
    ("prunus", 2.0): (0.96, 0.94),
    ("l2", 2.0): (0.92, 0.94),
    ("prunus", 4.0): (0.90, 0.86),
    ("l2", 4.0): (0.80, 0.70),
}
"""The metric of each seed's sparse network, by method and ratio."""


def study(values: Mapping[tuple[str, float], tuple[float, ...]]) -> Study:
    """Return a study with these results, whose dense networks reach 0.98 and 0.97."""
    runs = []
    for (label, ratio), reached in values.items():
        for seed, value in enumerate(reached):
            content = summary(
                dense={"validation": 1.0, "test": 0.98 - 0.01 * seed},
                sparse={"validation": 1.0, "test": value},
                sparsity=1 - 1 / ratio,
                compression_ratio=ratio,
            )
            runs.append(StudyRun(Cell(label, ratio, seed), "prunus run digits", "2026", content))
    labels = dict.fromkeys(label for label, _ in values)
    return Study(
        commands=("prunus compare digits --methods prunus,l2",),
        recipe="digits",
        data="embedded",
        changes=(),
        settings={"lr": 0.1, "floor": None},
        threads=1,
        methods={label: StudyMethod("l2", (), {"strength": 0.5}) for label in labels},
        environment={"processor": "Planted"},
        date="2026-11-27T12:00:00+00:00",
        runs=tuple(runs),
    )


def written(path: Path, content: Study) -> Path:
    path.mkdir(parents=True)
    write_study(path / STUDY_FILE, content)
    return path


def test_page_has_means_spreads_and_paired_differences(tmp_path: Path) -> None:
    page = read_page(write_report(written(tmp_path / "study", study(VALUES))))
    for part in (
        "digits: comparison of methods study: methods prunus, l2; ratios 2, 4; seeds 0, 1",
        # Means of two values, and their distance divided by √2; 0.0071 is 0.01/√2.
        "dense 1 0 0.975 ± 0.007",
        "prunus 2 50.0% 0.950 ± 0.014 -0.025 ± 0.007",
        "l2 4 75.0% 0.750 ± 0.071 -0.225 ± 0.064 +0.130 ± 0.030*",
        "prunus compare digits --methods prunus,l2",
        "l2 l2 strength=0.5",
        "lr 0.1 floor none",
        "processor Planted",
    ):
        assert part in page.text, part


def test_curves_are_means_with_bands_of_one_standard_deviation() -> None:
    drawing = study_curves(study(VALUES).table())
    assert "l2 at ratio 4 0.750 ± 0.071" in drawing.alt
    (axes,) = drawing.draw(FULL).axes
    lines = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(lines[0], [[0.5, 0.95], [0.25, 0.88]])
    np.testing.assert_allclose(lines[1], [[0.5, 0.93], [0.25, 0.75]])
    band = axes.collections[1].get_paths()[0].vertices
    expected = 0.75 - 0.1 / np.sqrt(2), 0.75 + 0.1 / np.sqrt(2)
    edges = sorted(y for x, y in np.asarray(band) if x == pytest.approx(0.25))
    assert (edges[0], edges[-1]) == pytest.approx(expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["50.0%", "75.0%"]
    labels = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert labels["prunus"] > labels["l2"]


def test_results_at_one_ratio_are_drawn_by_method() -> None:
    results = {key: values for key, values in VALUES.items() if key[1] == 4}
    drawing = study_curves(study(results).table())
    (axes,) = drawing.draw(NARROW).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["prunus", "l2"]
    values = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert [[0.9, 0], [0.86, 0]] in values  # each seed
    assert [[0.88, 0]] in values  # their mean


def test_study_of_one_seed_and_many_methods_has_a_page(tmp_path: Path) -> None:
    results = {
        (f"a method of some length {n}", ratio): (1 - ratio / 100 - n / 1e6,)
        for n in range(14)
        for ratio in (2.0, 4.0, 4.1)
    }
    page = read_page(write_report(written(tmp_path / "study", study(results))))
    assert "Values of one seed" in page.text
    assert "methods a method of some length 0," in page.text


def test_unfinished_study_states_what_is_missing(tmp_path: Path) -> None:
    whole = study(VALUES)
    half = [
        StudyRun(run.cell, run.command, None, run.summary if run.cell.ratio == 2 else None)
        for run in whole.runs
    ]
    page = read_page(write_report(written(tmp_path / "half", replaced(whole, half))))
    assert "4 of 8 runs are finished" in page.text
    none = [StudyRun(run.cell, run.command) for run in whole.runs]
    page = read_page(write_report(written(tmp_path / "none", replaced(whole, none))))
    assert "none of its 8 runs is. Continue it with prunus compare digits" in page.text
    assert page.all("svg") == []


def replaced(whole: Study, runs: list[StudyRun]) -> Study:
    return dataclasses.replace(whole, runs=tuple(runs))


def test_names_from_a_study_stay_text(tmp_path: Path) -> None:
    results = {(f"{EVIL}{n}", ratio): (0.9, 0.8) for n in (1, 2) for ratio in (2.0, 4.0)}
    path = write_report(written(tmp_path / "study", study(results)))
    page = read_page(path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"{EVIL}1 2 50.0%" in page.text


def test_study_and_run_share_a_page(tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", history=[])
    folder = written(tmp_path / "study", study(VALUES))
    page = read_page(write_report([folder, run], tmp_path / "page.html"))
    assert [attributes["id"] for attributes in page.all("article")] == ["section-1", "section-2"]
    # The record itself names the study too.
    assert write_report(folder / STUDY_FILE) == folder / "report.html"


def test_damaged_study_is_rejected(tmp_path: Path) -> None:
    folder = written(tmp_path / "study", study(VALUES))
    (folder / STUDY_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"study\.json"):
        write_report(folder)
