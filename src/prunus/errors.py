"""What prunus raises: when its user made a mistake, and when another process failed.

Every message says what was expected, what came instead and how to mend it, and lists every offender
at once. Anything else that escapes is a defect of prunus; the command tells the two apart by exit
code (2 and 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "CheckpointError",
    "DataError",
    "FloorNotReachedError",
    "NonFiniteError",
    "PeerError",
    "SparseFileError",
    "UserError",
]


class UserError(ValueError):
    """A mistake of the caller's: an argument, a file or a setting that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint is damaged, altered, or belongs to another model or run."""


class DataError(UserError):
    """A data set is absent, empty, truncated or has other columns than the recipe reads."""


class SparseFileError(UserError):
    """A sparse file is damaged, hostile, or larger than its reader allows."""


class FloorNotReachedError(UserError):
    """No state of the network ever met the floor, so there is nothing to deliver."""


class NonFiniteError(UserError):
    """A loss, metric or score is NaN or infinite."""


class PeerError(RuntimeError):
    """Another process of the group ended, or did not take part in what all have to do together."""


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that ``name`` is most likely a slip of, best first.

    Names that contain ``name`` count as near too, for a dotted name is often given by a part of it.

    Example:
        >>> nearest("fc9.weight", ["conv.weight", "fc1.weight", "fc2.weight"], most=2)
        ['fc2.weight', 'fc1.weight']
    """
    candidates = list(known)
    close = difflib.get_close_matches(name, candidates, n=most, cutoff=0.6)
    parts = [candidate for candidate in candidates if name and name in candidate]
    loose = difflib.get_close_matches(name, candidates, n=most, cutoff=0.4)
    return list(dict.fromkeys(close + parts + loose))[:most]


def listing(names: Sequence[str], most: int = 20) -> str:
    """Join names for a message: all of them up to ``most``, then how many more there are.

    Example:
        >>> listing(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
