"""Timing by turns in one process, and result files that say how they came about."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunus.environment import environment
from prunus.files import write_atomically

__all__ = ["Seconds", "interleaved", "options", "save", "spread"]

Seconds = npt.NDArray[np.float64]
"""Of one variant: a row per round, a column per call in the round."""


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    warm: int = 0,
    seed: int = 0,
) -> dict[str, Seconds]:
    """Time variants against each other, so that a drift of the machine meets all of them alike.

    In each round every variant has one turn, in an order drawn anew: ``warm`` calls that are not
    timed, to bring its data back into the caches, then ``calls`` that are, each by itself. Before
    the first round each is called once, untimed.

    Args:
        variants: What to call, by name.
        rounds: How many rounds.
        calls: Timed calls per turn.
        warm: Untimed calls before them.
        seed: Draws the orders.

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


def spread(seconds: Seconds) -> dict[str, float]:
    """Return median and quartiles of all timed calls, in milliseconds."""
    quartile, median, third = np.quantile(seconds * 1e3, (0.25, 0.5, 0.75)).tolist()
    return {"median_ms": median, "quartile_1_ms": quartile, "quartile_3_ms": third}


def options(description: str, name: str) -> argparse.ArgumentParser:
    """Return the options that all benchmarks share; ``name`` is that of the result file."""
    parser = argparse.ArgumentParser(description=description)
    default = Path(__file__).parent / "results" / f"{name}.json"
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--quick", action="store_true", help="a few rounds: does it run at all?")
    parser.add_argument("--out", type=Path, default=default, help="default: beside the benchmarks")
    return parser


def save(out: Path, seed: int, figures: Mapping[str, Any]) -> None:
    """Write figures to ``out`` together with what they were measured on, when, and how."""
    script, *rest = sys.argv
    command = ["python", Path("benchmarks", Path(script).name).as_posix(), *map(_shown, rest)]
    record = {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "environment": environment(),
        **figures,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(record, indent=2) + "\n").encode())


def _shown(argument: str) -> str:
    """Return an argument as it is, but a path from the root as its last part only."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)
