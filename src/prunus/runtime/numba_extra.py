"""The optional dependency of the kernels."""

from __future__ import annotations

from prunus._utils.extras import missing_extra

__all__ = ["check_numba"]


def check_numba() -> None:
    """Check that Numba can be imported.

    Raises:
        MissingExtraError: It cannot.
    """
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise missing_extra("the sparse runtime", "runtime", error) from error
