"""The table that the comparison of methods renders from its result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measuring import RESULTS, rounded, write_record
from benchmarks.studies import compare
from prunus.recipes.registry import find_recipe


def run(method: str, ratio: float, seed: int, dense: float, sparse: float) -> dict[str, Any]:
    summary = {
        "seed": seed,
        "sparsity": 1 - 1 / ratio,
        "metric": {"name": "BLEU", "mode": "max"},
        "dense": {"test": dense},
        "sparse": {"test": sparse},
    }
    return {"method": method, "ratio": ratio, "summary": summary}


RECORD = {
    "runs": [
        run("prunus", 10, 0, 37.0, 36.0),
        run("magnitude", 10, 0, 37.0, 35.0),
        run("prunus", 10, 1, 39.0, 37.0),
        run("prunus", 5, 0, 37.0, 37.5),
        run("magnitude", 5, 0, 37.0, 37.0),
        run("magnitude", 10, 1, 39.0, 34.0),
    ]
}


def test_means_spreads_and_gaps_by_hand() -> None:
    assert compare.table(RECORD) == [
        "| network | sparsity | test BLEU | against dense | prunus is better by |",
        "|---|---|---|---|---|",
        "| dense | 0 | 38.00 ± 1.41 | | |",  # of two values: their distance by the root of 2
        "| prunus | 90.0% | 36.50 ± 0.71 | -1.50 ± 0.71 |  |",
        # The differences are 1 and 3: the standard error of their mean is half of their distance.
        "| magnitude | 90.0% | 34.50 ± 0.71 | -3.50 ± 2.12 | +2.00 ± 1.00 |",
        "| prunus | 80.0% | 37.50 | +0.50 |  |",
        "| magnitude | 80.0% | 37.00 | +0.00 |  |",
    ]


def test_lead_is_positive_where_a_smaller_metric_is_better() -> None:
    ours = compare.Outcome(0.9, [0, 1, 2], [2.0] * 3, [2.25, 2.5, 9.0])
    theirs = compare.Outcome(0.9, [1, 0], [2.0] * 2, [2.75, 3.0])
    assert compare.lead(ours, theirs, maximised=False) == (0.5, 0.25)  # of 0.75 and 0.25
    assert compare.lead(theirs, ours, maximised=True) == (0.5, 0.25)


def test_runs_from_two_dense_networks_are_not_compared() -> None:
    record = {"runs": [run("relevance", 10, 0, 37.0, 36.0), run("L2", 10, 0, 37.1, 36.0)]}
    with pytest.raises(ValueError, match="the runs of seed 0 are of two dense networks"):
        compare.table(record)


def test_every_method_says_what_it_changes() -> None:
    for recipe in ("shakespeare-lm", "digits", "mnist-lenet300"):
        assert (
            compare.changes(recipe, "prunus") == []
        )  # the settings of the recipe are the method's
    assert compare.changes("shakespeare-lm", "relevance") == [
        "score=magnitude",
        "smoothing=0.99",
        "strength=3.0",
    ]
    assert compare.changes("shakespeare-lm", "L2") == [
        "penalty=l2",
        "score=magnitude",
        "strength=0.03",
    ]
    assert compare.changes("digits", "magnitude") == ["penalty=none", "score=magnitude"]
    assert "strength=1e-05" in compare.changes("digits", "paper")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("compare-*.json")), ids=lambda path: path.stem)
def test_result_files_have_the_settings_of_their_recipes(path: Path) -> None:
    record = json.loads(path.read_text())
    recipe = record["recipe"]
    # Those that depend on the processor, and that the name of the file states.
    chosen = {"autocast", *(["shift"] if path.stem.endswith("-without-shift") else [])}
    changed = [f"{name}={record['settings'][name]}" for name in sorted(chosen)]
    settings = find_recipe(recipe).config.with_settings(changed).as_dict()
    # Otherwise the comparison cannot be continued.
    assert record["settings"] == rounded(settings, 6)
    assert record["methods"] == {name: compare.changes(recipe, name) for name in record["methods"]}


def test_record_accepts_further_methods_but_no_other_settings_for_one(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    out.write_text(json.dumps({"recipe": "digits", "methods": {"L2": ["penalty=l2"]}, "runs": []}))
    added = {"random": ["penalty=none", "score=random"]}
    record = compare._started(out, {"recipe": "digits", "methods": added})
    assert record["methods"] == {"L2": ["penalty=l2"], **added}
    wanted = {"recipe": "digits", "methods": {"L2": ["penalty=l2", "strength=1"]}}
    with pytest.raises(SystemExit, match=r"record.json has other methods: name another file"):
        compare._started(out, wanted)


def test_record_continues_though_its_numbers_are_rounded(tmp_path: Path) -> None:
    wanted = {"settings": {"validation": 1 / 12}, "methods": {"L2": ["penalty=l2"]}}
    record = compare._started(tmp_path / "record.json", wanted)
    write_record(tmp_path / "record.json", record, digits=6)
    assert compare._started(tmp_path / "record.json", wanted)["runs"] == []
