"""Planted timings, by which tests of ``speed_up`` are independent of the machine and its load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from torch import nn

from prunus import speed_up
from prunus._utils import timing
from prunus.runtime import SpeedUpReport

__all__ = ["plant_timings", "report_of"]


def report_of(model: nn.Module, example: Any) -> tuple[nn.Module, SpeedUpReport]:
    """Return the fast model and the report."""
    return speed_up(model, example, return_report=True)


def plant_timings(
    monkeypatch: pytest.MonkeyPatch, *milliseconds: Sequence[float] | Sequence[Sequence[float]]
) -> list[int]:
    """Replace the measured time of every call by a planted one.

    Args:
        monkeypatch: Restores the measurement at the end of the test.
        milliseconds: The times of the calls of the dense variant, then of each other variant: of a
            single round, or a sequence for each round.

    Returns:
        The seeds of the sets of rounds, filled as they are timed: 0 for the first set of each
        comparison, and the number of sets before it for each repetition.
    """
    seeds: list[int] = []

    def interleaved(variants: Mapping[str, Any], *, seed: int, **_: Any) -> dict[str, Any]:
        seeds.append(seed)
        return {
            name: 1e-3 * np.atleast_2d(np.array(each, dtype=float))
            for name, each in zip(variants, milliseconds, strict=False)
        }

    monkeypatch.setattr(timing, "interleaved", interleaved)
    return seeds
