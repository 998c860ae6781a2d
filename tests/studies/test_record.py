"""The record of a study: its fields, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunus.errors import CheckpointError, PrunusError
from prunus.studies import Cell, load_study
from prunus.studies.plan import plan_study
from prunus.studies.record import write_study
from studies.stubs import request, summary


@pytest.fixture
def file(tmp_path: Path) -> Path:
    study = plan_study(request(methods=["prunus", "weak = prunus,strength=0.001"], seeds=[0]))
    study = study.with_summary(study.cells[1], summary(0, 0.9, 25.0), "2026-01-01T00:00:00+00:00")
    write_study(tmp_path / "study.json", study)
    return tmp_path / "study.json"


def test_fields_of_the_record(file: Path) -> None:
    content = json.loads(file.read_text())
    assert list(content) == [
        *("format", "commands", "recipe", "data", "changes", "settings", "threads", "methods"),
        *("environment", "date", "runs"),
    ]
    assert content["methods"]["weak"] == {
        "name": "prunus",
        "changes": ["strength=0.001"],
        "settings": {"strength": 0.001},
    }
    unfinished, finished = content["runs"]
    assert list(finished) == ["method", "ratio", "seed", "command", "date", "summary"]
    assert (unfinished["summary"], unfinished["date"]) == (None, None)
    assert finished["summary"]["sparse"]["test"] == 0.9


def test_study_is_the_same_after_a_round_trip(file: Path, tmp_path: Path) -> None:
    study = load_study(file)
    assert study == load_study(tmp_path)
    assert study.finished[0].cell == Cell("weak", 25.0, 0)
    write_study(tmp_path / "again.json", study)
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()


def test_absent_study_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match=r"there is no study in .*absent: pass the --out of prun"):
        load_study(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format must be 1, but is 2"),
        (
            {"runs": None, "threads": "1"},
            "threads must be a whole number, but is '1'; runs must be",
        ),
        ({"methods": {}}, "damaged: 'prunus' is missing"),
        ({"runs": [{"method": "prunus"}]}, "damaged: 'ratio' is missing"),
    ],
)
def test_damaged_record_is_reported(file: Path, change: dict[str, Any], message: str) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_study(file)


def test_truncated_record_is_reported(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"study.json is damaged: .*Restore it from a copy"):
        load_study(file)
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="it holds a list, not an object"):
        load_study(file)
