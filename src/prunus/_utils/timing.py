"""Interleaved timing of variants in one process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["Seconds", "fitting_rounds", "interleaved", "spread"]

Seconds = npt.NDArray[np.float64]
"""The times of one variant: a row per round, a column per call in the round."""


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    warm: int = 0,
    seed: int = 0,
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
                start = time.perf_counter()
                call()
                seconds[name][turn, i] = time.perf_counter() - start
    return seconds


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


def spread(seconds: Seconds) -> dict[str, float]:
    """Return median and quartiles of all timed calls, in milliseconds."""
    quartile, median, third = np.quantile(seconds * 1e3, (0.25, 0.5, 0.75)).tolist()
    return {"median_ms": median, "quartile_1_ms": quartile, "quartile_3_ms": third}
