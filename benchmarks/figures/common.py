"""Result files, and the descriptions of machines that several figures share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from benchmarks.measuring import RESULTS

NUMBERS = {1: "one thread", 2: "two threads"}


def load(name: str) -> Any:
    """Return the record in the result file of this name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def comparisons(names: Iterable[str]) -> dict[str, Any]:
    """Return the comparisons of these names that were measured, by name."""
    found = {name: f"compare-{name}" for name in names}
    return {name: load(f) for name, f in found.items() if (RESULTS / f"{f}.json").exists()}


def machine(environment: dict[str, Any]) -> str:
    """Return processor, cores, threads and torch version in words."""
    threads = NUMBERS.get(environment["threads"], f"{environment['threads']} threads")
    return (
        f"{environment['processor']}, {environment['cores']} cores, {threads}, "
        f"torch {environment['torch']}"
    )
