"""The comparison of two sizes in words."""

from __future__ import annotations

__all__ = ["compare_sizes"]


def compare_sizes(size: float, reference: float) -> str:
    """Return how many times smaller or larger a size is than a reference.

    Example:
        >>> compare_sizes(10, 139), compare_sizes(16, 10), compare_sizes(1000, 1001)
        ('13.9× smaller', '1.6× larger', 'the same size')
    """
    if size <= 0 or reference <= 0:
        return ""
    factor = max(size, reference) / min(size, reference)
    if factor < 1.05:
        return "the same size"
    digits = f"{factor:.1f}" if factor < 100 else f"{factor:,.0f}"
    return f"{digits}× {'smaller' if size < reference else 'larger'}"
