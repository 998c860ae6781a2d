"""Result files, and the descriptions of machines that several figures share."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.measuring import RESULTS

NUMBERS = {1: "one thread", 2: "two threads"}


def load(name: str) -> Any:
    """Return the record in the result file of this name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def machine(environment: dict[str, Any]) -> str:
    """Return processor, cores, threads and torch version in words."""
    threads = NUMBERS.get(environment["threads"], f"{environment['threads']} threads")
    return (
        f"{environment['processor']}, {environment['cores']} cores, {threads}, "
        f"torch {environment['torch']}"
    )
