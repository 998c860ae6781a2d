"""Errors for states that a pruner cannot load."""

from __future__ import annotations

from collections.abc import Sequence

from prunus.errors import CheckpointError, listing

__all__ = ["other_model_error", "state_error"]


def state_error(problem: str) -> CheckpointError:
    """Return the error for a state that is not a pruner's."""
    return CheckpointError(f"this is not the state of a Pruner: {problem}")


def other_model_error(
    *, missing: Sequence[str] = (), unknown: Sequence[str] = (), wrong: Sequence[str] = ()
) -> CheckpointError:
    """Return the error for a state of another model.

    Args:
        missing: Names of the model that the state lacks.
        unknown: Names in the state that the model lacks.
        wrong: Descriptions of the entries that do not fit the model.

    Example:
        >>> other_model_error(missing=["a", "b"], wrong=["c must be a tensor, but is int"])
        CheckpointError('this is the state of another model: missing a, b; c must be a tensor, \
but is int. Load the state saved with this model')
    """
    problems = [f"missing {listing(missing)}"] * bool(missing)
    problems += [f"unknown {listing(unknown)}"] * bool(unknown)
    problems += [listing(wrong)] * bool(wrong)
    return CheckpointError(
        f"this is the state of another model: {'; '.join(problems)}. Load the state saved with "
        "this model"
    )
