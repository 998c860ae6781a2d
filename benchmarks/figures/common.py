"""Result files, and the descriptions of machines that several figures share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.measuring import RESULTS
from benchmarks.studies.published import result_file
from prunus.studies import Study, load_study

NUMBERS = {1: "one thread", 2: "two threads"}


def load(name: str) -> Any:
    """Return the record in the result file of this name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def comparisons(names: Iterable[str]) -> dict[str, Study]:
    """Return the comparisons of these names that were measured, by name."""
    files = {name: result_file(name) for name in names}
    return {name: load_study(file) for name, file in files.items() if file.exists()}


def machines(study: Study) -> str:
    """Return the machines of a study's runs in words."""
    summaries = [run.summary for run in study.finished if run.summary is not None]
    return " and ".join(dict.fromkeys(machine(summary["environment"]) for summary in summaries))


def machine(environment: Mapping[str, Any]) -> str:
    """Return processor, cores, threads and torch version in words."""
    threads = NUMBERS.get(environment["threads"], f"{environment['threads']} threads")
    return (
        f"{environment['processor']}, {environment['cores']} cores, {threads}, "
        f"torch {environment['torch']}"
    )
