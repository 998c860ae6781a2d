"""Table of architectures and what each function of prunus returns for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.figures.common import load, machine

_LONGEST = 400
"""Characters of a reason that are shown; the result file has all of it."""

_FIXED = {
    "select": "Frozen weights are refused by default; with them in `exclude=`, equal.",
    "train and remove": "Some weights have no gradient in this training, such as those of an "
    "unused head or expert, which the default score refuses; with them in `exclude=`, equal.",
}
"""Notes on functions that are equal once the tensors named by the error are left out."""


def table() -> str:
    """Return a row of Markdown for each architecture, and the reasons below."""
    record = load("zoo")
    rows = record["architectures"]
    functions = max((list(row["outcomes"]) for row in rows), key=len)
    notes: dict[str, int] = {}
    lines = [
        f"| architecture | kind | {' | '.join(f'`{f}`' if '_' in f else f for f in functions)} |",
        "|---|---|" + "---|" * len(functions),
    ]
    for row in sorted(rows, key=lambda row: (row["library"] == "timm", row["kind"])):
        outcomes = row["outcomes"]
        cells = [_cell(f, outcomes[f], notes) if f in outcomes else "–" for f in functions]
        lines.append(f"| {_name(row)} | {row['kind']} | {' | '.join(cells)} |")
    counts = Counter(outcome["status"] for row in rows for outcome in row["outcomes"].values())
    libraries = Counter(row["library"] for row in rows)
    named = " and ".join(
        f"{count} of {name} {record['packages'][name]}" for name, count in libraries.items()
    )
    summary = (
        f"Small models of {len(rows)} architectures with random weights, {named}, are trained for "
        f"{record['steps']} steps of AdamW on random inputs, in which {record['sparsity']:.0%} of "
        "their prunable weights are removed. Each function then returned an equal model (✓), "
        "within the tolerance that its documentation states, or refused with a reason: "
        f"{counts['equal']} equal, {counts['refused']} refused, {counts['wrong']} wrong.\n"
    )
    reasons = [f"{number}. {note}" for note, number in notes.items()]
    environment = (
        f"\n{machine(record['environment'])}, onnxruntime {record['packages']['onnxruntime']}, "
        f"{record['date'][:10]}, by `python -m benchmarks.robustness.zoo`. `speed_up` replaced "
        "every layer with a sparse counterpart, whether faster or not. "
        "– was not tried.\n"
    )
    return "\n".join([summary, *lines, environment, "Notes:\n", *reasons, ""])


def _name(row: dict[str, Any]) -> str:
    return f"{row['name']} (timm)" if row["library"] == "timm" else str(row["name"])


def _cell(name: str, outcome: dict[str, Any], notes: dict[str, int]) -> str:
    """Return the status of a function, with the numbers of its notes."""
    sign = {"equal": "✓", "refused": "refused", "wrong": "**wrong**"}[outcome["status"]]
    numbers = [str(notes.setdefault(note, len(notes) + 1)) for note in _notes(name, outcome)]
    return f"{sign} <sup>{', '.join(numbers)}</sup>" if numbers else sign


def _notes(name: str, outcome: dict[str, Any]) -> Iterator[str]:
    """Yield why a function refused, what was left out, and what it warned of."""
    if outcome["fix"]:
        yield _FIXED[name]
    elif outcome["reason"]:
        yield _shortened(outcome["reason"])
    for warning in outcome["warnings"]:
        yield f"Warning: {_shortened(warning)}"


def _shortened(message: str) -> str:
    """Return a message without the model's class, line numbers and the end of a long text."""
    message = re.sub(r"^\w+ (?=cannot|is random|itself)", "It ", message)
    message = re.sub(r", at (\S+?):\d+, in (\w+),", r", at \1, in \2,", message)
    message = " ".join(message.split())
    if len(message) > _LONGEST:
        message = message[:_LONGEST].rsplit(" ", 1)[0] + " …"
    return message.replace("|", "\\|").replace("<", "&lt;") + (
        "." if message[-1] not in ".…" else ""
    )
