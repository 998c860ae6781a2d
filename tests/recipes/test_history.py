"""The history of a run, read from its metrics."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from prunus import CheckpointError
from prunus.recipes.run.history import read_history
from prunus.recipes.run.progress import Epoch

EPOCH = Epoch("prune", 3, 0.5, 0.6, 0.9, {"perplexity": 2.0}, 0.8, 0.25, 7, None, 0.125, 4.5)


def test_history_is_that_which_a_run_writes(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(asdict(EPOCH)) + "\n")
    assert read_history(file) == [EPOCH]
    assert read_history(tmp_path / "no") == []


def test_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    file, line = tmp_path / "metrics.jsonl", json.dumps(asdict(EPOCH))
    file.write_text(f"{line}\n{line}")
    assert read_history(file) == [EPOCH]


def test_values_that_are_not_finite_are_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    record = {
        **asdict(EPOCH),
        "loss": None,
        "validation": float("nan"),
        "validation_loss": -math.inf,
    }
    file.write_text(json.dumps(record) + "\n")
    (epoch,) = read_history(file)
    assert math.isnan(epoch.loss)
    assert math.isnan(epoch.validation)
    assert epoch.validation_loss == -math.inf


def test_lines_of_other_versions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    known = {"phase": "dense", "epoch": 1, "loss": 1, "validation_loss": 2, "validation": 3}
    file.write_text(json.dumps({**known, "unknown": "x"}) + "\n")
    assert read_history(file) == [Epoch("dense", 1, 1.0, 2.0, 3.0, {})]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Expecting property name"),
        ("[]", "it must be an object, but is []"),
        ("{}", "'phase' is missing"),
        ('{"phase": "up"}', "phase must be one of dense, prune, but is 'up'"),
        (json.dumps({**asdict(EPOCH), "loss": "x"}), "loss must be a number, but is 'x'"),
        (json.dumps({**asdict(EPOCH), "sparsity": True}), "sparsity must be a number, but is True"),
        (json.dumps({**asdict(EPOCH), "epoch": math.nan}), "cannot convert float NaN to integer"),
        (json.dumps({**asdict(EPOCH), "loss": 10**400}), "int too large to convert to float"),
        (json.dumps({**asdict(EPOCH), "extra_metrics": [1]}), "extra_metrics must be an object"),
        ("[" * 100_000, "recursion"),
        ("\udcff", "'utf-8' codec can't decode"),
    ],
)
def test_every_damaged_line_is_listed(tmp_path: Path, line: str, problem: str) -> None:
    file, whole = tmp_path / "metrics.jsonl", json.dumps(asdict(EPOCH))
    content = "".join(f"{each}\n" for each in (line, whole, line))
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError) as raised:
        read_history(file)
    for part in (f"{file} is damaged: line 1: ", "; line 3: ", problem, "Restore it from a copy"):
        assert part in str(raised.value)
    assert "line 2" not in str(raised.value)
