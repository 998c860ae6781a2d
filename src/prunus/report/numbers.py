"""Numbers as text, with as many digits as they deserve."""

from __future__ import annotations

import math

from prunus._utils.digits import decimals_for, format_metric

__all__ = [
    "change",
    "file_size",
    "milliseconds",
    "significant",
    "value",
]

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def value(number: float) -> str:
    """Return a metric or loss that is shown alone.

    Example:
        >>> value(0.97216), value(27.7234), value(-0.5), value(float("nan"))
        ('0.9722', '27.72', '−0.5000', 'not a number')
    """
    return format_metric(number).replace("-", "−")


def change(before: float, after: float) -> str:
    """Return a difference with its sign, with the decimals that both values have.

    Example:
        >>> change(0.9722, 0.9638), change(27.1, 27.72)
        ('−0.0084', '+0.62')
    """
    difference = after - before
    if not math.isfinite(difference):
        return ""
    decimals = decimals_for([], [before, after])
    if round(difference, decimals) == 0:
        return f"{0:.{decimals}f}"
    return f"{difference:+.{decimals}f}".replace("-", "−")


def significant(number: float, digits: int = 3) -> str:
    """Return a number with a few significant digits, and without an exponent.

    Example:
        >>> significant(1234.5), significant(0.03968), significant(2.0)
        ('1,234', '0.0397', '2.00')
    """
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{decimals}f}"


def milliseconds(number: float) -> str:
    """Return a time in milliseconds."""
    return f"{significant(number)} ms"


def file_size(size: float) -> str:
    """Return a size in decimal units.

    Example:
        >>> file_size(202_960), file_size(512), file_size(1_066_976)
        ('203 kB', '512 bytes', '1.07 MB')
    """
    power = 0
    while size >= 999.5 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.0f} bytes" if power == 0 else f"{significant(size)} {_UNITS[power]}"
