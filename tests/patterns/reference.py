"""Removal by patterns in plain Python, on lists of float64 numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunus.patterns import NM, Block, Channels, Columns, Heads, Pattern, Rows

Matrix = list[list[float]]
Places = list[tuple[int, int]]


@dataclass(frozen=True)
class _Group:
    score: float
    tensor: int
    number: int
    places: Places


def block_shape(pattern: Pattern, rows: int, columns: int) -> tuple[int, int]:
    """Return the sizes of a pattern's blocks in a matrix."""
    match pattern:
        case Block(height, width):
            return height, width
        case Channels() | Rows():
            return 1, columns
        case Columns():
            return rows, 1
        case Heads(size, "output"):
            return size, columns
        case Heads(size, "input"):
            return rows, size
        case _:
            raise AssertionError(pattern)


def blocks(pattern: Pattern, rows: int, columns: int) -> list[Places]:
    """Return the places of each block, block by block along the rows."""
    height, width = block_shape(pattern, rows, columns)
    return [
        [
            (i, j)
            for i in range(top, min(top + height, rows))
            for j in range(left, min(left + width, columns))
        ]
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]


def lines(pattern: NM, rows: int, columns: int) -> list[Places]:
    """Return the places of each group of m."""
    if pattern.along == "input":
        whole = [[(i, j) for j in range(columns)] for i in range(rows)]
    else:
        whole = [[(i, j) for i in range(rows)] for j in range(columns)]
    return [
        line[start : start + pattern.m]
        for line in whole
        for start in range(0, len(line), pattern.m)
    ]


def kept_of(pattern: NM, size: int) -> int:
    """Return how many weights a group of some size keeps."""
    return math.ceil(pattern.n * size / pattern.m)


def smallest_of_each(pattern: NM, scores: Matrix, mask: list[list[bool]]) -> Places:
    """Return the places of the weights that the pattern allows to remove."""
    found: Places = []
    for group in lines(pattern, len(scores), len(scores[0])):
        kept = sorted(((scores[i][j], (i, j)) for i, j in group if mask[i][j]))
        removable = max(0, len(kept) - kept_of(pattern, len(group)))
        found += [place for _, place in kept[:removable]]
    return found


def remove(
    scores: Sequence[Matrix],
    masks: Sequence[list[list[bool]]],
    patterns: Sequence[Pattern | None],
    excess: int,
    least: Sequence[int],
) -> list[list[list[bool]]]:
    """Return masks after the removal of at most ``excess`` weights from all tensors together.

    Args:
        scores: The scores, of one matrix for each tensor.
        masks: Which weights are kept before.
        patterns: The pattern of each tensor.
        excess: How many weights to remove.
        least: How many weights each tensor keeps at least.
    """
    result = [[list(row) for row in mask] for mask in masks]
    groups: list[_Group] = []
    for t, (matrix, mask, pattern) in enumerate(zip(scores, masks, patterns, strict=True)):
        rows, columns = len(matrix), len(matrix[0])
        if pattern is None or isinstance(pattern, NM):
            every = [(i, j) for i in range(rows) for j in range(columns) if mask[i][j]]
            allowed = every if pattern is None else smallest_of_each(pattern, matrix, mask)
            groups += [_Group(matrix[i][j], t, i * columns + j, [(i, j)]) for i, j in allowed]
            continue
        for number, block in enumerate(blocks(pattern, rows, columns)):
            places = [(i, j) for i, j in block if mask[i][j]]
            if places:
                mean = math.fsum(matrix[i][j] for i, j in places) / len(places)
                groups.append(_Group(float(np.float32(mean)), t, number, places))
    kept = [sum(map(sum, mask)) for mask in masks]
    closed: set[int] = set()
    for group in sorted(groups, key=lambda g: (g.score, g.tensor, g.number)):
        t, size = group.tensor, len(group.places)
        if t in closed:
            continue
        if size > excess:
            break
        if kept[t] - size < least[t]:
            closed.add(t)
            continue
        excess -= size
        kept[t] -= size
        for i, j in group.places:
            result[t][i][j] = False
    return result


def zeros_by_group(pattern: NM, mask: list[list[bool]]) -> Mapping[int, set[int]]:
    """Return, by the size of a group, how many weights the groups of that size keep."""
    found: dict[int, set[int]] = {}
    for group in lines(pattern, len(mask), len(mask[0])):
        found.setdefault(len(group), set()).add(sum(mask[i][j] for i, j in group))
    return found
