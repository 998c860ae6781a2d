"""Metrics and fractions as text, with as many digits as they deserve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["decimals_for", "format_metric", "format_metrics", "format_percent"]

_MOST = 8
"""The most decimals of a number."""


def decimals_for(spreads: Sequence[float], values: Sequence[float]) -> int:
    """Return the number of decimals that metrics in one table deserve.

    Two digits of the lower quartile of the spreads, so that a method with a large spread does not
    hide the differences between the others, and at most two decimals more than the median spread
    deserves, so that two equal seeds do not fill the table with digits. Without a spread, four
    decimals below 10 and two above, or three digits of values below 0.01.

    Args:
        spreads: The standard deviations and errors that are shown. Zeros and values that are not
            finite are left out.
        values: The values beside them, which count if no spread is left.

    Example:
        >>> decimals_for([0.0025, 0.0041], [0.96]), decimals_for([0.41], [27.7])
        (4, 2)
        >>> decimals_for([], [0.9638]), decimals_for([], [27.72]), decimals_for([], [0.000123])
        (4, 2, 6)
    """
    usable = sorted(spread for spread in spreads if math.isfinite(spread) and spread > 0)
    if usable:
        quartile = _decimals(usable[(len(usable) - 1) // 4], 2)
        return min(quartile, _decimals(statistics.median_low(usable), 2) + 2, _MOST)
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0:
        return 4
    return max(4 if largest < 10 else 2, _decimals(largest, 3))


def format_metric(value: float) -> str:
    """Return a metric or loss that is shown alone.

    Example:
        >>> format_metric(0.97216), format_metric(27.7234), format_metric(math.nan)
        ('0.9722', '27.72', 'not a number')
    """
    return format_metrics([value])[0]


def format_metrics(values: Sequence[float]) -> list[str]:
    """Return metrics that are shown beside each other, with equal decimals.

    Example:
        >>> format_metrics([9.5, 10.25]), format_metrics([0.5, math.inf])
        (['9.50', '10.25'], ['0.5000', 'infinite'])
    """
    decimals = decimals_for([], values)
    return [_text(value, decimals) for value in values]


def format_percent(fraction: float) -> str:
    """Return a density in percent: one decimal, and of small ones two digits.

    Example:
        >>> format_percent(0.04), format_percent(0.000123), format_percent(1.0), format_percent(0)
        ('4.0%', '0.012%', '100%', '0%')
    """
    if fraction in (0, 1):
        return f"{fraction:.0%}"
    percent = 100 * fraction
    decimals = max(1 if percent >= 1 else 2, 1 - math.floor(math.log10(percent)))
    return f"{percent:.{min(decimals, _MOST)}f}%"


def _text(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return f"{value:.{decimals}f}"


def _decimals(number: float, digits: int) -> int:
    """Return the decimals that show this many significant digits of a number, up to eight."""
    return min(_MOST, max(0, digits - 1 - math.floor(math.log10(number))))
