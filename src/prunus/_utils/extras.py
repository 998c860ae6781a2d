"""The error for a missing optional dependency, which names the extra to install."""

from __future__ import annotations

from prunus.errors import MissingExtraError

__all__ = ["missing_extra"]


def missing_extra(feature: str, extra: str, error: ImportError) -> MissingExtraError:
    """Return the error for a feature whose optional dependency cannot be imported.

    Args:
        feature: What needs it, in the singular.
        extra: The extra of prunus that installs it.
        error: What importing it raised.

    Example:
        >>> missing_extra("the sparse runtime", "runtime", ImportError("No module named 'numba'"))
        MissingExtraError("the sparse runtime needs the extra 'runtime': \
pip install 'prunus[runtime]' (No module named 'numba')")
    """
    return MissingExtraError(
        f"{feature} needs the extra {extra!r}: pip install 'prunus[{extra}]' ({error})"
    )
