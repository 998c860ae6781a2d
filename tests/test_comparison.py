"""The table that the comparison of methods renders from its result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measuring import RESULTS
from benchmarks.studies import compare
from prunus.recipes.registry import find_recipe


def run(method: str, ratio: float, seed: int, dense: float, sparse: float) -> dict[str, Any]:
    summary = {
        "seed": seed,
        "sparsity": 1 - 1 / ratio,
        "metric": {"name": "BLEU"},
        "dense": {"test": dense},
        "sparse": {"test": sparse},
    }
    return {"method": method, "ratio": ratio, "summary": summary}


RECORD = {
    "runs": [
        run("relevance", 10, 0, 37.0, 36.0),
        run("no penalty", 10, 0, 37.0, 35.0),
        run("relevance", 10, 1, 39.0, 37.0),
        run("relevance", 5, 0, 37.0, 37.5),
    ]
}


def test_means_spreads_and_gaps_by_hand() -> None:
    assert compare.table(RECORD) == [
        "| network | sparsity | test BLEU | against dense |",
        "|---|---|---|---|",
        "| dense | 0 | 38.00 ± 1.41 | |",  # of two values: their distance by the root of 2
        "| relevance | 90.0% | 36.50 ± 0.71 | -1.50 ± 0.71 |",
        "| no penalty | 90.0% | 35.00 | -2.00 |",
        "| relevance | 80.0% | 37.50 | +0.50 |",
    ]


def test_runs_from_two_dense_networks_are_not_compared() -> None:
    record = {"runs": [run("relevance", 10, 0, 37.0, 36.0), run("L2", 10, 0, 37.1, 36.0)]}
    with pytest.raises(ValueError, match="the runs of seed 0 are of two dense networks"):
        compare.table(record)


def test_every_method_says_what_it_changes() -> None:
    for method in compare.METHODS:
        assert isinstance(compare.changes("shakespeare-lm", method), list)
    assert compare.changes("shakespeare-lm", "L2")[0] == "penalty=l2"
    assert compare.changes("digits", "L2") == ["penalty=l2"]
    assert compare.changes("digits", "prunus") == [
        "alpha=0.2",
        "strength=auto",
        "score=fisher",
    ]


@pytest.mark.parametrize("recipe", compare.L2_STRENGTHS)
def test_result_files_have_the_settings_of_their_recipes(recipe: str) -> None:
    record = json.loads((RESULTS / f"compare-{recipe}.json").read_text())
    settings = find_recipe(recipe).config.with_settings(["autocast=true"]).as_dict()
    assert record["settings"] == settings  # otherwise the comparison cannot be continued
    assert record["methods"] == {name: compare.changes(recipe, name) for name in compare.METHODS}


def test_record_accepts_further_methods_but_no_other_settings_for_one(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    out.write_text(json.dumps({"recipe": "digits", "methods": {"L2": ["penalty=l2"]}, "runs": []}))
    added = {"random": ["penalty=none", "score=random"]}
    record = compare._started(out, {"recipe": "digits", "methods": added})
    assert record["methods"] == {"L2": ["penalty=l2"], **added}
    wanted = {"recipe": "digits", "methods": {"L2": ["penalty=l2", "strength=1"]}}
    with pytest.raises(SystemExit, match=r"record.json has other methods: name another file"):
        compare._started(out, wanted)
