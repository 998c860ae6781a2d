"""Tests of timings by turns: ratios of paired rounds, their bounds, and repetitions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prunus._utils import timing
from prunus._utils.timing import PairedTimings, clock_for, interleaved, paired_timings


def timings_of(**milliseconds: Any) -> PairedTimings:
    """Return planted timings, a row per round, relative to those named ``dense``."""
    seconds = {name: 1e-3 * np.array(each, dtype=float) for name, each in milliseconds.items()}
    return PairedTimings(reference="dense", seconds=seconds)


def test_ratio_is_independent_of_a_load_on_whole_rounds_and_on_single_turns() -> None:
    # Rounds 2 and 3 are ten times as slow; in rounds 4 and 5 one of the two turns is disturbed.
    dense = [[2], [20], [20], [800], [2], [2], [2]]
    fast = [[1], [10], [10], [1], [400], [1], [1]]
    timings = timings_of(dense=dense, fast=fast)
    assert timings.ratio("fast") == 0.5
    assert timings.milliseconds("dense")["median_ms"] == pytest.approx(2)
    found = timings.milliseconds("fast")
    assert found["median_ms"] == pytest.approx(1)
    assert found["quartile_1_ms"] <= found["median_ms"] <= found["quartile_3_ms"]


def test_turn_is_the_median_of_its_calls() -> None:
    timings = timings_of(dense=[[3.0, 90.0, 4.0]], fast=[[0.25, 0.5, 70.0]])
    assert timings.ratio("fast") == pytest.approx(0.125)


def test_bounds_enclose_the_median_more_closely_with_more_rounds() -> None:
    # 25 ratios 1, 2, ... 25: places 12.5 ± 1.96·√25/2 = 7.6 and 17.4, of which 7 and 17 are inner.
    few = timings_of(dense=np.ones((5, 1)), fast=np.arange(1, 6).reshape(5, 1))
    many = timings_of(dense=np.ones((25, 1)), fast=np.arange(1, 26).reshape(25, 1))
    assert few.bounds("fast") == (1, 5)
    assert many.bounds("fast") == (8, 18)


@pytest.mark.parametrize(
    ("ratios", "certain"),
    [
        ([0.50, 0.70, 0.60, 0.80, 0.55], True),  # clearly below the threshold
        ([1.20, 1.90, 1.50, 1.30, 1.40], True),  # clearly above
        ([0.70, 0.95, 0.80, 0.90, 0.85], False),  # below, but too close to it
        ([0.70, 1.40, 0.90, 1.10, 1.00], False),
        ([0.99, 1.01, 1.00, 1.02, 1.00], True),  # as fast as the reference
    ],
)
def test_ratio_is_certain_if_it_is_clear_of_the_threshold_or_precise(
    ratios: list[float], certain: bool
) -> None:
    timings = timings_of(dense=np.ones((5, 1)), fast=np.array(ratios).reshape(5, 1))
    assert timings.is_certain("fast", precision=0.05, threshold=1.0) == certain


def repeated(most_seconds: float, is_certain: Callable[[PairedTimings], bool]) -> PairedTimings:
    return paired_timings(
        {"dense": lambda: None, "fast": lambda: None},
        reference="dense", seconds=1e-3, most_seconds=most_seconds, least=5, most=5, calls=2,
        threads=1, is_certain=is_certain,
    )  # fmt: skip


def test_rounds_are_repeated_until_certain_or_the_time_is_over() -> None:
    answers = iter([False, False, True])
    timings = repeated(60.0, lambda _: next(answers))
    assert {name: each.shape for name, each in timings.seconds.items()} == {
        "dense": (15, 2),
        "fast": (15, 2),
    }
    assert len(repeated(0.0, lambda _: False).ratios("fast")) == 5
    assert len(repeated(60.0, lambda _: False).ratios("fast")) == 5 * timing._MOST_SETS


def test_calls_are_timed_by_the_given_clock() -> None:
    ticks = itertools.count(0.0, 7.0)
    seconds = interleaved({"a": lambda: None}, rounds=3, calls=2, clock=lambda: next(ticks))
    assert seconds["a"].tolist() == [[7.0, 7.0]] * 3


def test_time_of_one_thread_excludes_waiting_and_that_of_several_does_not() -> None:
    wait = {"wait": lambda: time.sleep(0.02)}
    alone, shared = (interleaved(wait, rounds=2, clock=clock_for(n))["wait"] for n in (1, 2))
    assert (alone < 0.01).all()
    assert (shared >= 0.02).all()
