"""The penalty, schedule, score and allocation of a pruner to which none was passed."""

from __future__ import annotations

import copy
from typing import Literal

from prunus.allocation import GlobalAllocation
from prunus.penalties.relevance import RelevancePenalty
from prunus.schedules import IterativePruning, Schedule
from prunus.scores import FisherScore

__all__ = ["DEFAULT_ALLOCATION", "DEFAULT_SCORE", "PenaltyChoice", "with_defaults"]

PenaltyChoice = RelevancePenalty | Literal["auto"] | None
"""A penalty; "auto" for the best one known, if there is a use for it; or None for no penalty."""

DEFAULT_SCORE = FisherScore()

DEFAULT_ALLOCATION = GlobalAllocation()


def with_defaults(
    penalty: PenaltyChoice, schedule: Schedule | None, floor: float | str | None
) -> tuple[RelevancePenalty | None, Schedule]:
    """Return the penalty and a copy of the schedule, with the default of each that was not passed.

    Args:
        penalty: As for :class:`~prunus.Pruner`.
        schedule: As for :class:`~prunus.Pruner`.
        floor: As for :class:`~prunus.Pruner`.
    """
    if schedule is None:
        schedule = Schedule() if floor is None else IterativePruning()
    if isinstance(penalty, str):
        # Without removals the penalty would shrink weights that are never removed.
        penalty = None if type(schedule) is Schedule else RelevancePenalty()
    # A copy, because a schedule counts, and one that is used twice would continue its count.
    return penalty, copy.deepcopy(schedule)
