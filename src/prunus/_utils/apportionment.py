"""Apportionment: whole numbers with an exact sum, in proportion to weights and within bounds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["apportion"]


def apportion(
    total: int, weights: Sequence[Fraction | int], least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Return whole numbers that sum to ``total``, in proportion to weights as far as bounds allow.

    One factor scales all weights. A share beyond a bound is set to the bound, and the factor is
    such that the shares sum to ``total``. They are rounded by largest remainder; of equal
    remainders the first is rounded up. All arithmetic is exact, so that every process that makes
    the same call gets the same numbers.

    Args:
        total: The sum.
        weights: A weight of at least 0 for each share.
        least: The lower bound of each share.
        most: The upper bound of each share, at least its lower bound.

    Raises:
        ValueError: The bounds do not allow the sum.

    Source: the method of Hamilton, with bounds.

    Example:
        >>> apportion(10, weights=[1, 1, 1], least=[0, 0, 0], most=[9, 9, 9])
        [4, 3, 3]
        >>> apportion(10, weights=[1, 1, 1], least=[0, 0, 0], most=[2, 9, 9])
        [2, 4, 4]
    """
    rows = list(zip(map(Fraction, weights), least, most, strict=True))

    def shares(factor: Fraction) -> list[Fraction]:
        return [
            min(max(factor * weight, Fraction(low)), Fraction(high)) for weight, low, high in rows
        ]

    def reached(factor: Fraction) -> Fraction:
        return sum(shares(factor), Fraction(0))

    # The sum is piecewise linear in the factor; its slope changes where a share meets a bound.
    corners = sorted({bound / weight for weight, *bounds in rows if weight for bound in bounds})
    corners = corners or [Fraction(0)]
    if not reached(corners[0]) <= total <= reached(corners[-1]):
        raise ValueError(
            f"the shares can sum to {reached(corners[0])} to {reached(corners[-1])}, not {total}"
        )
    after = bisect_left(corners, Fraction(total), key=reached)
    factor = corners[after]
    if after and reached(factor) > total:
        before = corners[after - 1]
        low, high = reached(before), reached(factor)
        factor = before + (factor - before) * (total - low) / (high - low)
    exact = shares(factor)
    rounded = [math.floor(share) for share in exact]
    order = sorted(range(len(rows)), key=lambda i: rounded[i] - exact[i])  # stable: ties in order
    for i in order[: total - sum(rounded)]:
        rounded[i] += 1
    return rounded
