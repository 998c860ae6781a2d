"""Aligned tables of plain text, which ``print`` of a report shows."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MOST_ROWS", "text_table"]

MOST_ROWS = 20
"""The most rows that a report prints: its fields have all."""


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    footer: Sequence[str] = (),
    text_columns: int = 1,
    most: int = MOST_ROWS,
) -> str:
    """Return a table whose columns are aligned: the first ones at the left, numbers at the right.

    Args:
        header: The titles of the columns.
        rows: The cells of each row. Of more rows than ``most`` the first and the last are shown,
            and between them how many are left out.
        footer: The cells of a row of totals, which is always shown. Default: none.
        text_columns: How many of the first columns are text.
        most: The most rows to show.

    Example:
        >>> print(text_table(["tensor", "weights"], [["a", "5"], ["b.weight", "1,024"]]))
        tensor    weights
        a               5
        b.weight    1,024
        >>> print(text_table(["step"], [["1"], ["2"], ["3"], ["40"]], text_columns=0, most=2))
        step
           1
        … 2 more
          40
    """
    first = len(rows) if len(rows) <= most else most - most // 2
    last = len(rows) if len(rows) <= most else len(rows) - most // 2
    shown = [header, *rows[:first], *rows[last:], *([footer] if footer else [])]
    widths = [max(len(row[column]) for row in shown) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]
    if last > first:
        lines.insert(1 + first, f"… {last - first} more")
    return "\n".join(lines)
