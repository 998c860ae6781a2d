"""Digits of metrics, against decimals worked out by hand."""

from __future__ import annotations

import math

import pytest

from prunus._utils.digits import decimals_for, format_metrics, format_percent


@pytest.mark.parametrize(
    ("spreads", "values", "decimals"),
    [
        # Two digits of 0.012 are three decimals: 0.960 ± 0.012 and not 0.96 ± 0.01.
        ([0.012], [0.96], 3),
        ([0.41], [27.7], 2),
        ([12.0], [345.0], 0),
        # A method that collapsed, with a spread of 0.1, does not hide 0.0025: its place is the
        # first of three, (3 − 1) // 4 = 0.
        ([0.1, 0.0041, 0.0025], [0.96], 4),
        ([0.12, 0.11, 0.004], [0.9], 4),  # 3 − 0 digits of 0.004, and the median allows 2 + 2
        # Of five spreads the second counts, so that one of nearly equal seeds does not.
        ([1e-9, 0.02, 0.03, 0.04, 0.05], [0.9], 3),
        ([1e-9, 0.02, 0.03], [0.9], 5),  # of three it counts, up to two more than 0.02 deserves
        ([1e-20], [1.0], 8),
        # Without a spread, as in a table of one seed.
        ([0.0, math.nan], [0.9638], 4),
        ([], [9.99], 4),
        ([], [10.0, 0.5], 2),
        ([], [0.00123], 5),
        ([], [0.0, math.inf], 4),
        ([], [], 4),
    ],
)
def test_decimals_are_those_that_the_spread_deserves(
    spreads: list[float], values: list[float], decimals: int
) -> None:
    assert decimals_for(spreads, values) == decimals


def test_metrics_beside_each_other_have_equal_decimals() -> None:
    assert format_metrics([27.7234, 9.1]) == ["27.72", "9.10"]
    assert format_metrics([2.4543, 2.6196]) == ["2.4543", "2.6196"]
    assert format_metrics([0.5, math.nan, -math.inf]) == ["0.5000", "not a number", "infinite"]


def test_small_densities_keep_two_digits() -> None:
    assert [format_percent(x) for x in (0.531456, 0.0999, 0.00999, 1e-5, 1e-12)] == [
        *("53.1%", "10.0%", "1.00%", "0.0010%", "0.00000000%"),
    ]
