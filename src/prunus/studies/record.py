"""Record of a study: ``study.json``, written aside and renamed after each run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunus._utils.files import write_atomically
from prunus.errors import CheckpointError, PrunusError
from prunus.recipes.run.directory import read_object
from prunus.studies.cells import Cell
from prunus.studies.study import Study, StudyMethod, StudyRun

__all__ = ["STUDY_FILE", "load_study", "read_study", "write_study"]

STUDY_FILE = "study.json"
"""The name of the record in the directory of a study."""

FORMAT = 1
"""The version of the record's format, under the key ``format``."""

_FIELDS: Mapping[str, tuple[type, str]] = {
    "commands": (list, "a list"),
    "recipe": (str, "a text"),
    "data": (str, "a text"),
    "changes": (list, "a list"),
    "settings": (dict, "an object"),
    "threads": (int, "a whole number"),
    "methods": (dict, "an object"),
    "environment": (dict, "an object"),
    "date": (str, "a text"),
    "runs": (list, "a list"),
}
"""The type of each key of the record, and its name in messages."""

_FIX = "Restore it from a copy, or start another study in another --out"


def load_study(path: str | Path) -> Study:
    """Load a study.

    Args:
        path: The directory that ``prunus compare`` wrote to, or its study.json.

    Returns:
        The study, finished or not.

    Raises:
        PrunusError: There is no study.
        CheckpointError: The file is damaged, or of another version.

    Example:
        >>> import tempfile
        >>> load_study(tempfile.gettempdir() + "/absent")
        Traceback (most recent call last):
        prunus.errors.PrunusError: there is no study in ...
    """
    found = Path(path)
    file = found if found.is_file() else found / STUDY_FILE
    if not file.is_file():
        raise PrunusError(
            f"there is no study in {path}: pass the --out of prunus compare, or its {STUDY_FILE}"
        )
    return read_study(file)


def read_study(file: Path) -> Study:
    """Return the study in a file.

    Raises:
        CheckpointError: The file is damaged, or of another version.
    """
    content = read_object(file, _FIX)
    if problems := list(_problems(content)):
        raise CheckpointError(f"{file} is no study of this version: {'; '.join(problems)}. {_FIX}")
    try:
        study = Study(
            commands=tuple(content["commands"]),
            recipe=content["recipe"],
            data=content["data"],
            changes=tuple(content["changes"]),
            settings=content["settings"],
            threads=content["threads"],
            methods={
                label: StudyMethod(method["name"], tuple(method["changes"]), method["settings"])
                for label, method in content["methods"].items()
            },
            environment=content["environment"],
            date=content["date"],
            runs=tuple(map(_run, content["runs"])),
        )
        for cell in study.cells:
            study.methods[cell.method]  # raises KeyError for an unknown label
        return study
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{file} is damaged: {reason}. {_FIX}") from error


def write_study(file: Path, study: Study) -> None:
    """Write a study, replacing the file at once.

    Args:
        file: The file.
        study: The study.

    Raises:
        PrunusError: The file cannot be written; the old one is unchanged.
    """
    content = {
        "format": FORMAT,
        "commands": list(study.commands),
        "recipe": study.recipe,
        "data": study.data,
        "changes": list(study.changes),
        "settings": dict(study.settings),
        "threads": study.threads,
        "methods": {
            label: {
                "name": method.name,
                "changes": list(method.changes),
                "settings": dict(method.settings),
            }
            for label, method in study.methods.items()
        },
        "environment": dict(study.environment),
        "date": study.date,
        "runs": [
            {**run.cell._asdict(), "command": run.command, "date": run.date, "summary": run.summary}
            for run in study.runs
        ],
    }
    write_atomically(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the keys of a record."""
    if content.get("format") != FORMAT:
        yield f"format must be {FORMAT}, but is {content.get('format')!r}"
        return
    for key, (kind, expected) in _FIELDS.items():
        if key not in content:
            yield f"{key} is missing"
        elif not isinstance(content[key], kind):
            yield f"{key} must be {expected}, but is {content[key]!r}"


def _run(content: Mapping[str, Any]) -> StudyRun:
    cell = Cell(str(content["method"]), float(content["ratio"]), int(content["seed"]))
    summary = content["summary"]
    if summary is not None:
        for key in ("dense", "sparse", "metric", "sparsity", "compression_ratio"):
            if key not in summary:
                raise KeyError(f"{key} in the summary of {cell}")
    return StudyRun(cell, content["command"], content["date"], summary)
