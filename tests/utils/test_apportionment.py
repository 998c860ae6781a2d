"""Apportionment of a total, by hand and by its defining properties."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus._utils.apportionment import apportion

Shares = tuple[int, list[int], list[int], list[int]]
"""A total, weights, lower and upper bounds."""


@st.composite
def feasible(draw: st.DrawFn) -> Shares:
    count = draw(st.integers(1, 6))
    whole = st.integers(0, 40)
    weights = [draw(st.integers(1, 30)) for _ in range(count)]
    least = [draw(whole) for _ in range(count)]
    most = [low + draw(whole) for low in least]
    return draw(st.integers(sum(least), sum(most))), weights, least, most


def exact_shares(shares: Shares) -> list[Fraction]:
    """Return the shares before rounding, by bisection to far below a difference of two shares."""
    total, weights, least, most = shares

    def at(factor: Fraction) -> list[Fraction]:
        return [
            min(max(factor * weight, Fraction(low)), Fraction(high))
            for weight, low, high in zip(weights, least, most, strict=True)
        ]

    low, high = Fraction(0), Fraction(100)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < total else (low, middle)
    # At the end of a flat part of the sum any factor is right, and the shares are the same.
    return [share.limit_denominator(10**9) for share in at(high)]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(feasible())
def test_shares_are_exact_bounded_and_rounded_by_largest_remainder(shares: Shares) -> None:
    total, weights, least, most = shares
    result = apportion(total, weights, least, most)
    assert sum(result) == total
    assert all(low <= s <= high for s, low, high in zip(result, least, most, strict=True))
    exact = exact_shares(shares)
    assert sum(exact) == total
    floors = [math.floor(share) for share in exact]
    remainders = sorted(
        (floor - share, i) for i, (floor, share) in enumerate(zip(floors, exact, strict=True))
    )
    up = {i for _, i in remainders[: total - sum(floors)]}
    assert result == [floor + (i in up) for i, floor in enumerate(floors)]


@pytest.mark.parametrize(
    ("total", "weights", "least", "most", "expected"),
    [
        # 10 / 3 each; the first of equal remainders is rounded up.
        (10, [1, 1, 1], [0, 0, 0], [9, 9, 9], [4, 3, 3]),
        # 12 · (1, 2, 3) / 6.
        (12, [1, 2, 3], [0, 0, 0], [9, 9, 9], [2, 4, 6]),
        # 5.5, 3.3 and 2.2: one is left over, and the first has the largest remainder.
        (11, [5, 3, 2], [0, 0, 0], [9, 9, 9], [6, 3, 2]),
        # The largest share is bounded to 4; the others have 8 · (1, 2) / 3 = 2.67 and 5.33.
        (12, [1, 2, 3], [0, 0, 0], [9, 9, 4], [3, 5, 4]),
        # The smallest share is raised to 3; the others have 9 · (2, 3) / 5 = 3.6 and 5.4.
        (12, [1, 2, 3], [3, 0, 0], [9, 9, 9], [3, 4, 5]),
        # Without a weight, the lower bound.
        (12, [0, 1, 1], [2, 0, 0], [9, 9, 9], [2, 5, 5]),
        (2, [0, 0], [2, 0], [9, 9], [2, 0]),
        # Both ends.
        (3, [1, 5], [1, 2], [9, 9], [1, 2]),
        (18, [1, 5], [1, 2], [9, 9], [9, 9]),
        # Weights that are fractions.
        (10, [Fraction(1, 3), Fraction(1, 2)], [0, 0], [9, 9], [4, 6]),
        (0, [], [], [], []),
    ],
)
def test_shares_are_those_worked_by_hand(
    total: int,
    weights: list[Fraction | int],
    least: list[int],
    most: list[int],
    expected: list[int],
) -> None:
    assert apportion(total, weights, least, most) == expected


@pytest.mark.parametrize("total", [2, 19])
def test_total_out_of_bounds_is_rejected(total: int) -> None:
    with pytest.raises(ValueError, match=f"the shares can sum to 3 to 18, not {total}"):
        apportion(total, [1, 5], [1, 2], [9, 9])
