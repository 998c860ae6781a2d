"""Equivalent mutants: changes that no test can detect, each with the reason.

A key is a module below ``src/prunus/`` and the changed lines: removed ones with a minus, added ones
with a plus, stripped and joined by newlines. ``mutants.py`` writes the reason beside the survivor,
and names every key here that no longer matches one.
"""

from __future__ import annotations

__all__ = ["EQUIVALENT", "reason"]

# The reasons that several mutants share.
_FALSE = "None is as false as False"

EQUIVALENT: dict[str, dict[str, str]] = {
    "selection.py": {
        "-for name, module in model.named_modules(remove_duplicate=False):\n"
        "+for name, module in model.named_modules(remove_duplicate=None):": _FALSE,
        "-for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):\n"
        "+for own, parameter in module.named_parameters(recurse=None, remove_duplicate=False):": (
            _FALSE
        ),
        "-for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):\n"
        "+for own, parameter in module.named_parameters(recurse=False, remove_duplicate=None):": (
            _FALSE
        ),
    },
}


def reason(module: str, diff: list[str]) -> str | None:
    """Return why a mutant of a module is equivalent, or None if nothing is known of it."""
    return EQUIVALENT.get(module, {}).get("\n".join(_stripped(line) for line in diff))


def _stripped(line: str) -> str:
    return line[0] + line[1:].strip()
