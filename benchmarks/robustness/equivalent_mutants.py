"""Equivalent mutants: changes that no test can detect, each with the reason.

A key is a module below ``src/prunus/`` and the changed lines: removed ones with a minus, added ones
with a plus, stripped and joined by newlines. ``mutants.py`` writes the reason beside the survivor,
and names every key here that no longer matches one.
"""

from __future__ import annotations

__all__ = ["EQUIVALENT", "reason"]

EQUIVALENT: dict[str, dict[str, str]] = {}


def reason(module: str, diff: list[str]) -> str | None:
    """Return why a mutant of a module is equivalent, or None if nothing is known of it."""
    return EQUIVALENT.get(module, {}).get("\n".join(_stripped(line) for line in diff))


def _stripped(line: str) -> str:
    return line[0] + line[1:].strip()
