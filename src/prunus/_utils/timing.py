"""Interleaved timing of variants in one process."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "PairedTimings",
    "Seconds",
    "clock_for",
    "fitting_rounds",
    "interleaved",
    "paired_timings",
    "spread",
]

Seconds = npt.NDArray[np.float64]
"""The times of one variant: a row per round, a column per call in the round."""

_DEVIATIONS = 1.96
"""Standard deviations on either side of a median that contain it in 95 of 100 cases."""

_MOST_SETS = 20
"""Sets of rounds, at most, until a comparison is certain.

A heuristic that bounds the repetitions of short calls, as the time bounds those of long ones.
"""

_CLEARANCE = 1.15
"""Factor by which bounds must be away from a threshold to be certainly on one side of it.

A heuristic: the bounds assume that rounds are disturbed independently of each other, but another
process may use the caches during all rounds of a set, and none in the next one.
"""


@dataclass(frozen=True, kw_only=True)
class PairedTimings:
    """Times of variants that took turns, compared with a reference round by round.

    A load on the machine disturbs all turns of a round alike, or single turns. The quotient of two
    turns of one round is independent of the former, and the median of all quotients of the latter.

    Attributes:
        reference: Name of the variant that the others are compared with.
        seconds: The times of each variant, by name.
    """

    reference: str
    seconds: Mapping[str, Seconds]

    def ratios(self, name: str) -> npt.NDArray[np.float64]:
        """Return, for each round, the median call of a variant, in those of the reference."""
        own, reference = (np.median(self.seconds[each], axis=1) for each in (name, self.reference))
        ratios: npt.NDArray[np.float64] = own / reference
        return ratios

    def ratio(self, name: str) -> float:
        """Return the time of a variant relative to the reference's: the median over all rounds."""
        return float(np.median(self.ratios(name)))

    def bounds(self, name: str) -> tuple[float, float]:
        """Return bounds of the median ratio that contain it in 95 of 100 cases.

        They are ratios themselves, the fewer rounds the farther out, whatever their distribution.

        Example:
            >>> seconds = {"a": np.ones((9, 1)), "b": np.arange(1.0, 10.0).reshape(9, 1)}
            >>> PairedTimings(reference="a", seconds=seconds).bounds("b")
            (2.0, 8.0)
        """
        ordered = np.sort(self.ratios(name))
        count = len(ordered)
        place = max(0, math.floor(count / 2 - _DEVIATIONS * math.sqrt(count) / 2))
        return float(ordered[place]), float(ordered[count - 1 - place])

    def is_certain(self, name: str, *, precision: float, threshold: float | None = None) -> bool:
        """Return whether a ratio is known.

        Args:
            name: The variant.
            precision: Distance of the bounds, relative to the ratio, up to which it is.
            threshold: It is also known if both bounds are clearly on one side of this. Default: no
                such.
        """
        low, high = self.bounds(name)
        if threshold is not None and (
            high < threshold / _CLEARANCE or low > threshold * _CLEARANCE
        ):
            return True
        return high - low <= precision * self.ratio(name)

    def milliseconds(self, name: str) -> dict[str, float]:
        """Return median and quartiles of a variant's calls, in milliseconds.

        Those of the reference are over all its calls. Those of another variant are its ratios times
        the reference's median, so that the quotient of two medians is the ratio of paired rounds.
        """
        reference = spread(self.seconds[self.reference])
        if name == self.reference:
            return reference
        return spread(self.ratios(name) * (reference["median_ms"] / 1e3))


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    warm: int = 0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Seconds]:
    """Return the times of variants that take turns, so that a drift of the machine affects all.

    In each round every variant has one turn, in a random order: ``warm`` calls that are not timed,
    to bring its data back into the caches, then ``calls`` that are timed one by one. Before the
    first round each is called once, untimed.

    Args:
        variants: The functions to call, by name.
        rounds: How many rounds.
        calls: Timed calls per turn.
        warm: Untimed calls before them.
        seed: The seed of the orders.
        clock: Returns the time in seconds. Default: that of the wall.

    Returns:
        The seconds of every timed call.
    """
    seconds = {name: np.empty((rounds, calls)) for name in variants}
    for call in variants.values():
        call()
    order, draw = list(variants), random.Random(seed)
    for turn in range(rounds):
        draw.shuffle(order)
        for name in order:
            call = variants[name]
            for _ in range(warm):
                call()
            for i in range(calls):
                start = clock()
                call()
                seconds[name][turn, i] = clock() - start
    return seconds


def clock_for(threads: int) -> Callable[[], float]:
    """Return the clock for calls that use this number of threads.

    One thread is timed by the processor time of this process, which does not pass while the
    processor runs another process. Several threads wait for each other, which takes no such time.
    """
    return time.process_time if threads == 1 else time.perf_counter


def fitting_rounds(
    variants: Mapping[str, Callable[[], object]], seconds: float, *, least: int, most: int
) -> int:
    """Return how many calls of all variants fit into a time, after one untimed call of each.

    Args:
        variants: The functions to call, by name.
        seconds: The time.
        least: The fewest to return.
        most: The most to return.
    """
    for call in variants.values():
        call()  # compiles and fills caches
    start = time.perf_counter()
    for call in variants.values():
        call()
    once = time.perf_counter() - start
    return int(np.clip(seconds / max(once, 1e-9), least, most))


def paired_timings(
    variants: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    seconds: float,
    most_seconds: float,
    least: int,
    most: int,
    calls: int,
    threads: int,
    is_certain: Callable[[PairedTimings], bool],
) -> PairedTimings:
    """Return the times of variants, from more rounds where a load on the machine disturbs them.

    Args:
        variants: The functions to call, by name.
        reference: Name of the variant to compare the others with.
        seconds: Approximate time of a set of rounds.
        most_seconds: No further set begins after this time.
        least: The fewest rounds of a set.
        most: The most rounds of a set.
        calls: Timed calls per turn, after one that is not timed.
        threads: Number of threads that a call uses, see :func:`clock_for`.
        is_certain: Returns whether the times of the sets so far suffice.
    """
    start = time.perf_counter()
    rounds = fitting_rounds(variants, seconds / (calls + 1), least=least, most=most)
    sets: list[Mapping[str, Seconds]] = []
    while True:
        timed = interleaved(
            variants, rounds=rounds, calls=calls, warm=1, seed=len(sets), clock=clock_for(threads)
        )
        sets.append(timed)
        joined = {name: np.concatenate([each[name] for each in sets]) for name in variants}
        timings = PairedTimings(reference=reference, seconds=joined)
        late = time.perf_counter() - start > most_seconds or len(sets) == _MOST_SETS
        if late or is_certain(timings):
            return timings


def spread(seconds: Seconds) -> dict[str, float]:
    """Return median and quartiles of all timed calls, in milliseconds."""
    quartile, median, third = np.quantile(seconds * 1e3, (0.25, 0.5, 0.75)).tolist()
    return {"median_ms": median, "quartile_1_ms": quartile, "quartile_3_ms": third}
