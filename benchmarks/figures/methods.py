"""Tables of the named methods, rendered from their registry."""

from __future__ import annotations

from prunus.allocation import GlobalAllocation
from prunus.methods import DecayOverEpoch, Method, methods


def tables() -> str:
    """Return two tables with a row for each method: what it does, and its parts."""
    return "\n".join(
        [
            "| method | what it does | source |",
            "|---|---|---|",
            *(_row(f"`{m.name}`", m.summary, m.source) for m in methods.values()),
            "",
            "| method | penalty | strength | score | growth | schedule |",
            "|---|---|---|---|---|---|",
            *(_parts(method) for method in methods.values()),
            "",
        ]
    )


def _parts(method: Method) -> str:
    return _row(
        f"`{method.name}`",
        _penalty(method),
        _strength(method),
        _score(method),
        "none" if method.growth is None else f"`{method.growth.__name__}`",
        f"`{method.schedule.__name__}`",
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _score(method: Method) -> str:
    """Return the score, and the allocation unless it is global."""
    parts: list[object] = [method.score]
    if method.allocation != GlobalAllocation():
        parts.append(method.allocation)
    return ", ".join(f"`{part!r}`" for part in parts)


def _penalty(method: Method) -> str:
    if method.coefficient is None:
        return "none"
    options = [f'apply="{method.apply}"']
    options += [f"power={method.power}"] if method.power != 2 else []
    options += [f"smoothing={method.smoothing}"] if method.smoothing else []
    return f"`{method.coefficient!r}`, " + ", ".join(f"`{option}`" for option in options)


def _strength(method: Method) -> str:
    if method.coefficient is None:
        return ""
    if method.strength is None:
        return "open"
    if isinstance(method.strength, DecayOverEpoch):
        return f"`LinearDecayStrength({method.strength.initial}, steps_per_epoch)`"
    return f"`{method.strength!r}`"
