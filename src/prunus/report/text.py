"""Names from files as text that a page can show."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

__all__ = ["plain_label", "plain_text", "short_names"]

_SPACES = "\n\r\t"

_UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn")
"""Unicode's categories of control characters, directions of writing, and undefined ones."""


def plain_text(text: str) -> str:
    """Return a text in one line, with a sign for each character that would disturb a page.

    Example:
        >>> plain_text("a" + chr(10) + "b"), plain_text("×" + chr(0x202E))
        ('a b', '×�')
    """
    characters = (" " if character in _SPACES else character for character in text)
    return "".join("�" if unicodedata.category(c) in _UNSAFE else c for c in characters)


def plain_label(text: str, most: int = 40) -> str:
    """Return a name for a figure: plain, and shortened in the middle.

    Args:
        text: The name.
        most: The number of characters to keep, with that which stands for the others.

    Example:
        >>> plain_label("model.encoder.layers.10.self_attn.q_proj.weight", 24)
        'model.encode…proj.weight'
    """
    text = plain_text(text)
    if len(text) <= most:
        return text
    first = most // 2
    return f"{text[:first]}…{text[len(text) - (most - first - 1) :]}"


def short_names(names: Sequence[str]) -> list[str]:
    """Return dotted names without the parts that all of them begin and end with.

    Where numbers alone would be left, the names keep their ends.

    Example:
        >>> short_names(["model.h.0.attn.weight", "model.h.10.mlp.weight"])
        ['0.attn', '10.mlp']
        >>> short_names(["1.weight", "3.weight"]), short_names(["fc.weight"])
        (['1.weight', '3.weight'], ['fc.weight'])
    """
    if len(set(names)) < 2:
        return list(names)
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts)) - 1  # so that something is left of each
    first = _common(parts, shortest)
    last = _common([part[::-1] for part in parts], shortest - first)
    short = [part[first : len(part) - last] for part in parts]
    if any("".join(part).isdecimal() for part in short):
        short = [part[first:] for part in parts]
    return [".".join(part) for part in short]


def _common(parts: Sequence[Sequence[str]], most: int) -> int:
    """Return the number of leading parts that all have in common, at most so many."""
    columns = zip(*(part[:most] for part in parts), strict=True)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return len(list(same))
